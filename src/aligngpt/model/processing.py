"""The processor: turns text and images into token ids and pixels, and inserts `<align>`."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from PIL import Image
from transformers import BatchFeature, LlavaProcessor
from transformers.processing_utils import MultiModalData

from aligngpt.model.templates import PLAIN, ChatTemplateError
from aligngpt.upright_rgb import upright_rgb

ALIGN_TOKEN = "<align>"
IMAGE_TOKEN = "<image>"
WORD_JOINER = "\u2060"
_PROBE = "what is in it"

_HOW_TO_RENDER = (
    "add_generation_prompt",
    "continue_final_message",
    "load_audio_from_video",
    "processor_kwargs",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
)
"""Arguments of `apply_chat_template` that are not for the template."""


class AlignGPTProcessor(LlavaProcessor):
    """A `LlavaProcessor` that inserts `<align>` right after BOS, or first, in every text with an image.

    Args:
        image_processor, tokenizer, patch_size, vision_feature_select_strategy: see `LlavaProcessor`.
        chat_template, image_token, num_additional_image_tokens: see `LlavaProcessor`.
        image_seq_length: number of image tokens per image, P.
        align_token: the alignment token; None for a model without an alignment module (`alignment: none`).
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = IMAGE_TOKEN,
        num_additional_image_tokens: int = 0,
        image_seq_length: int = 576,
        align_token: str | None = ALIGN_TOKEN,
        **kwargs: Any,
    ) -> None:
        self.image_seq_length = image_seq_length
        self.align_token = align_token
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As `LlavaProcessor.from_pretrained`, with Pillow's image processor even if torchvision is installed.

        The two round differently when they resize, and pixels must not depend on what is installed. Another `backend`
        may be given.
        """
        return super().from_pretrained(pretrained_model_name_or_path, *args, **{"backend": "pil"} | kwargs)

    @classmethod
    def _load_tokenizer_from_pretrained(cls, *args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        # `backend` is that of the image processor. A tokenizer has one of its own, and would save this in its place.
        return super()._load_tokenizer_from_pretrained(*args, **kwargs)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """As `LlavaProcessor.__call__`; texts with `<image>` get `<align>`.

        Args:
            images: one image, or a flat list in the order of the placeholders, or a list per text. PIL images and image
                files are made upright and RGB, with transparency on white, as everywhere in the package; addresses and
                base64 are loaded by transformers, which shows the colours below transparency.
            text: one prompt or a list of them.

        Returns:
            `input_ids` and `attention_mask` `(batch, length)`, `pixel_values (images, channels, height, width)`.

        Raises:
            ValueError: the number of `<image>` placeholders in the texts differs from the number of images.
        """
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            _check_image_count(sum(sample.count(self.image_token) for sample in texts), _count_images(images))
            text = [self.place_align(sample) for sample in texts]
            if "add_special_tokens" not in kwargs | (kwargs.get("text_kwargs") or {}):
                text, chosen = self._as_encoded(text)
                kwargs |= chosen
        return super().__call__(images=_opened(images), text=text, **kwargs)

    def _as_encoded(self, texts: list[str]) -> tuple[list[str], dict[str, bool]]:
        """The texts, and how to tokenize them as `encode` does: with one BOS, and no end mark after them."""
        bos = self.tokenizer.bos_token
        begins = [bool(bos) and text.startswith(bos) for text in texts]
        before, after = self._added()
        if not after and not any(begins):
            return texts, {}
        added = "".join(before)
        written = [text if has_bos else added + text for text, has_bos in zip(texts, begins, strict=True)]
        return written, {"add_special_tokens": False}

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholders of one image in the text: the same number of tokens whatever its size in pixels."""
        return self.image_token * self.image_seq_length

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """For inference engines: the number of tokens of images of the given sizes."""
        if image_sizes is None:
            return MultiModalData()
        images = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.image_seq_length] * images, num_image_patches=[1] * images)

    def place_align(self, text: str, whole: str | None = None) -> str:
        """Insert `<align>` right after a leading BOS, or first; text without an image is returned unchanged.

        A tokenizer that adds BOS itself puts it before the text, hence before `<align>`. If the chat template writes
        the BOS token before every message (ChatML's `<|im_start|>` in SmolLM2), it does not count as a BOS here.

        Args:
            text: a rendered conversation, or its beginning.
            whole: the conversation that `text` is the beginning of, whose images may come later; None for all of it.
        """
        whole = text if whole is None else whole
        if self.align_token is None or self.image_token not in whole:
            return text
        bos = self.tokenizer.bos_token or ""
        written_out = isinstance(self.chat_template, str) and bos in self.chat_template
        opening = bos if whole.startswith(bos) and not (written_out and whole.count(bos) > 1) else ""
        rest = text[len(opening) :]
        return text if rest.startswith(self.align_token) else opening + self.align_token + rest

    def expand(self, text: str, whole: str | None = None) -> str:
        """A rendered conversation ready for tokenization: with `<align>`, and `<image>` once per image token.

        Arguments as for `place_align`.
        """
        return self.place_align(text, whole).replace(self.image_token, self.image_token * self.image_seq_length)

    def neutral(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same conversation with special tokens in its texts broken up, so that user text never becomes one.

        Each special token in a text gets an invisible word joiner (U+2060) after its first character; if one is spelled
        across several texts, each text begins with a word joiner. Images inside a text become `<image>` within it,
        because most chat templates write all images of a message before its text.
        """
        marks = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        marks = [mark for mark in marks if len(mark) > 1]

        def spelled_out(text: str) -> str:
            for mark in marks:
                text = text.replace(mark, f"{mark[0]}{WORD_JOINER}{mark[1:]}")
            return text

        messages = _with_texts(messages, spelled_out)
        # Templates may write texts next to each other.
        whole = "".join(text for message in messages for text in _texts(message["content"]))
        if any(mark in whole for mark in marks):
            messages = _with_texts(messages, lambda text: WORD_JOINER + text)
        return [
            {**message, "content": _joined(message["content"], self.image_token)}
            if is_interleaved(message["content"])
            else message
            for message in messages
        ]

    def left_out(
        self, messages: Sequence[dict[str, Any]], rendered: str, chat_template: str | None = None
    ) -> str | None:
        """The role of the first message with a text that the chat template left out; None if all texts are there.

        White space is not compared. `PLAIN` leaves out the system turn and questions by design.

        Args:
            messages: the conversation that was rendered, or some of it.
            rendered: the text it was rendered to.
            chat_template: the template it was rendered with; the processor's own when None.
        """
        plain = (chat_template or self.chat_template) == PLAIN
        found = _without_space(rendered)
        for message in messages:
            meant = not plain or message["role"] == "assistant"
            if meant and any(_without_space(text) not in found for text in _texts(message["content"])):
                return str(message["role"])
        return None

    def turn_end(self) -> str:
        """The text that the chat template writes after an answer; empty if there is a token or only white space."""
        talk = [{"role": role, "content": [{"type": "text", "text": _PROBE}]} for role in ("user", "assistant")]
        try:
            rendered: Any = self.apply_chat_template(talk, tokenize=False)
        except (TemplateError, TypeError, ValueError):
            return ""
        _, answer, after = rendered.rpartition(_PROBE)
        after = after.strip()
        has_token = any(token.content in after for token in self.tokenizer.added_tokens_decoder.values())
        return after if answer and not has_token else ""

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """As `ProcessorMixin.apply_chat_template`; tokenized conversations with responses get an `instruction_mask`.

        The mask `(batch, length)` marks the tokens that the gate read when the conversation began, see
        `instruction_mask`.

        Raises:
            ValueError: `sanitize_control_tokens` is set.
        """
        if kwargs.get("sanitize_control_tokens"):
            raise ValueError(
                "sanitize_control_tokens changes tokens, so it would not be known where the first answer begins; give "
                "processor.neutral(messages) in place of the messages"
            )
        rendered: Any = super().apply_chat_template(conversation, chat_template, **kwargs)
        if not (kwargs.get("tokenize") and kwargs.get("return_dict")):
            return rendered
        conversations = [conversation] if isinstance(conversation[0], dict) else conversation
        has_answers = any(message["role"] == "assistant" for turns in conversations for message in turns)
        if self.align_token is not None and has_answers:
            variables = {name: value for name, value in kwargs.items() if name not in _HOW_TO_RENDER}
            rendered["instruction_mask"] = self.instruction_mask(
                conversations, rendered["attention_mask"], chat_template, **variables
            )
        return rendered

    def instruction_mask(
        self,
        conversations: Sequence[list[dict[str, Any]]],
        attention_mask: Any,
        chat_template: str | None = None,
        **variables: Any,
    ) -> Any:
        """The mask of tokens that the gate may read in each conversation: those before the first response.

        A response before which nothing is asked, such as a greeting, is read together with what is asked after it, up
        to the next response.

        Args:
            conversations: in chat format; those with a response are rendered again.
            attention_mask: `(batch, length)`, from tokenizing the conversations.
            chat_template: the template they were rendered with; the processor's own when None.
            **variables: what else the template was given, such as `tools`.

        Returns:
            A copy of `attention_mask`, zero from the first response on.

        Raises:
            ChatTemplateError: the template writes what is asked first otherwise once there is a response.
        """
        mask = deepcopy(attention_mask)
        for row, turns in enumerate(conversations):
            roles = [turn["role"] for turn in turns]
            asked = roles.index("user") if "user" in roles else len(turns)
            first = next((place for place in range(asked, len(turns)) if roles[place] == "assistant"), len(turns))
            if first == len(turns):
                continue
            whole = super().apply_chat_template(turns, chat_template, tokenize=False, **variables)
            opening = self._opening(turns[:first], str(whole), chat_template, variables)
            _, offsets = self.encode(self.expand(whole))
            start = list(mask[row]).index(1)
            # Element by element, which works for lists, arrays and tensors alike.
            response = len(self.expand(opening, whole))
            for position in range(start + instruction_length(offsets, response), len(mask[row])):
                mask[row][position] = 0
        return mask

    def _opening(
        self, asked: list[dict[str, Any]], whole: str, chat_template: str | None, variables: dict[str, Any]
    ) -> str:
        """The beginning of a rendered conversation: its first turns, and what opens the response to them."""
        opening: Any = super().apply_chat_template(
            asked, chat_template, add_generation_prompt=True, tokenize=False, **variables
        )
        if whole.startswith(opening):
            return str(opening)
        # A template may open a response with more than it keeps, such as a thought, but must not move the first turns.
        if not whole.startswith(str(super().apply_chat_template(asked, chat_template, tokenize=False, **variables))):
            raise ChatTemplateError(
                "it writes the first question otherwise once there is an answer, so the gate cannot read it as it did; "
                "leave out the system message, or use another template"
            )
        differs = (place for place, (ours, theirs) in enumerate(zip(opening, whole, strict=False)) if ours != theirs)
        return whole[: next(differs, None)]

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a rendered and expanded conversation, and the character offsets of each token in the text.

        What the tokenizer writes before a text, such as BOS, is added unless the text begins with BOS; what it writes
        after a text is not, because an answer may follow.
        """
        bos = self.tokenizer.bos_token
        adds_special = not (bos and text.startswith(bos))
        encoded = self.tokenizer(text, add_special_tokens=adds_special, return_offsets_mapping=True)
        end = len(encoded["input_ids"]) - (len(self._added()[1]) if adds_special else 0)
        return list(encoded["input_ids"][:end]), list(encoded["offset_mapping"][:end])

    def _added(self) -> tuple[list[str], list[str]]:
        """The special tokens that the tokenizer writes before and after a text."""
        encoded = self.tokenizer("a", return_special_tokens_mask=True)
        tokens = self.tokenizer.convert_ids_to_tokens(encoded["input_ids"])
        text = [place for place, is_added in enumerate(encoded["special_tokens_mask"]) if not is_added]
        return tokens[: text[0]], tokens[text[-1] + 1 :]


def _texts(content: str | Sequence[dict[str, Any]]) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]


def _without_space(text: str) -> str:
    return "".join(text.split())


def _with_texts(messages: Sequence[dict[str, Any]], change: Callable[[str], str]) -> list[dict[str, Any]]:
    """The messages with each of their texts changed."""

    def changed(content: Any) -> Any:
        if isinstance(content, str):
            return change(content)
        return [{**part, "text": change(part["text"])} if "text" in part else part for part in content]

    return [{**message, "content": changed(message["content"])} for message in messages]


def is_interleaved(content: str | Sequence[dict[str, Any]]) -> bool:
    """Whether images of a message stand inside its text, rather than all before or all after it."""
    if isinstance(content, str):
        return False
    images = [place for place, part in enumerate(content) if part["type"] == "image"]
    texts = [place for place, part in enumerate(content) if part["type"] == "text" and part["text"].strip()]
    return bool(images and texts) and images[-1] > texts[0] and images[0] < texts[-1]


def _joined(parts: Sequence[dict[str, Any]], image_token: str) -> list[dict[str, Any]]:
    text = "".join(image_token if part["type"] == "image" else part["text"] for part in parts)
    return [{"type": "text", "text": text}]


def instruction_length(offsets: Sequence[tuple[int, int]], response: int) -> int:
    """Number of tokens in the instruction of a conversation: those before the first response.

    Defines what the gate reads. Training derives the same from the labels, whose first counted token is the first of
    the first response; the processor and the engine call this function.

    Args:
        offsets: start and end of each token in the text.
        response: start of the first response in the text.
    """
    before = (place for place, (start, end) in enumerate(offsets) if start < end and start >= response)
    return next(before, len(offsets))


def _count_images(images: Any) -> int:
    if images is None:
        return 0
    if isinstance(images, (list, tuple)):
        return sum(_count_images(image) for image in images)
    return images.shape[0] if getattr(images, "ndim", 0) == 4 else 1


def _opened(images: Any) -> Any:
    """The images with the PIL images and the files among them upright and RGB."""
    if isinstance(images, (list, tuple)):
        return [_opened(image) for image in images]
    if isinstance(images, Path) or (isinstance(images, str) and _is_file(images)):
        images = Image.open(images)
    return upright_rgb(images) if isinstance(images, Image.Image) else images


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # Too long for a path, as base64 is.
        return False


def _check_image_count(placeholders: int, images: int) -> None:
    if placeholders != images:
        raise ValueError(
            f"the text contains {placeholders} <image> placeholders but {images} images were given; write <image> once "
            "for each image"
        )
