"""How a model's chat writes a conversation: its special tokens, and what stands around the picture.

The chat templates, which are beside the models, and the processors write the same.
"""

from dataclasses import dataclass, field

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"


@dataclass(frozen=True)
class Layout:
    """One model's way to write a conversation.

    Attributes:
        image: the token in whose place the model puts one cell of the picture.
        bos: what a conversation begins with, if anything.
        before_image: text between the user token and the image tokens.
        after_image: text between the image tokens and the first question.
        named: special tokens that the processor asks its tokenizer for, by attribute.
    """

    image: str
    bos: str | None = None
    before_image: str = ""
    after_image: str = "\n"
    named: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def prefix(self) -> str:
        """Everything before the image tokens."""
        return (self.bos or "") + USER + self.before_image

    @property
    def special(self) -> list[str]:
        """Every special token once, in the order of the ids."""
        bos = [self.bos] if self.bos else []
        return list(dict.fromkeys([PAD, END, *bos, USER, ASSISTANT, *self.named.values(), self.image]))
