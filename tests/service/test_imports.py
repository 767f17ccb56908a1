import os
import subprocess
import sys


def test_importing_the_service_reads_no_settings_and_needs_no_torch() -> None:
    code = (
        "import sys, service.app, service.server, service.worker; "
        "assert not {'torch', 'transformers', 'mcts.search', 'lop'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"LOP_PORT": "not a port"})


def test_plans_are_made_without_the_packages_of_a_server() -> None:
    """`lop plan --database` and `lop compare` plan in their own process."""
    code = (
        "import sys, service.planner; assert not {'fastapi', 'starlette', 'uvicorn'} & set(sys.modules), 'of a server'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
