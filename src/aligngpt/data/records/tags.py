"""Media tags in texts: `<image>`, and the tags of other tools, which must not be trained on as text."""

import re

from aligngpt.data.records.error import RecordError

IMAGE_PLACEHOLDER = "<image>"

# Image tags of other tools: if they were kept as text, the model would train on the tag and never see the image.
# Qwen-VL, InternLM, Phi, Llama 3.2, Gemma 3, Pixtral, and LLaVA's own with start and end.
_PICTURE_TAG = re.compile(
    r"<\|?(?:image|img)[ _-]?(?:\d+|here|pad|placeholder|start|end|begin|patch|context|token|soft_token)?\|?>"
    r"|</(?:image|img)>|<\|vision_(?:start|end|pad)\|>|<im_(?:start|end|patch)>|<(?:start|end)_of_image>",
    re.IGNORECASE,
)
_PIXTRAL_TAG = re.compile(r"\[IMG(?:_BREAK|_END)?\]")
_OTHER_MEDIA = {
    "video": re.compile(r"<\|?video(?:[ _-]?(?:\d+|here|pad|placeholder))?\|?>", re.IGNORECASE),
    "audio": re.compile(r"<\|?(?:audio|speech|sound)(?:[ _-]?(?:\d+|here|pad|placeholder))?\|?>", re.IGNORECASE),
}


def check_tags(text: str, speaker: str) -> None:
    """Reject a text with an image, video or audio tag other than `<image>`.

    Args:
        text: the text of a turn.
        speaker: whose turn it is, for the message.

    Raises:
        RecordError: `video`, `audio` or `picture_tag`; the message names the tag.
    """
    text = text.replace(IMAGE_PLACEHOLDER, "")
    if "<" not in text and "[IMG" not in text:
        return
    for reason, pattern in _OTHER_MEDIA.items():
        if found := pattern.search(text):
            raise RecordError(
                reason,
                f"a turn of the {speaker} has the tag {found[0]}: only text and images are read; leave the "
                "record out, or remove the tag if it stands for nothing",
            )
    if found := _PICTURE_TAG.search(text) or _PIXTRAL_TAG.search(text):
        raise RecordError(
            "picture_tag",
            f"a turn of the {speaker} has the tag {found[0]}, expected {IMAGE_PLACEHOLDER} in place of the image and "
            "its path in the field `image`",
        )
