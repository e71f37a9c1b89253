"""What of a tokenizer affects how it encodes texts."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any


def tokenizer_content(tokenizer: Any) -> bytes:
    """Digest of all that affects how a tokenizer encodes texts, independent of its last call."""
    names = ("padding_side", "truncation_side", "model_input_names", "special_tokens_map")
    called = {name: getattr(tokenizer, name, None) for name in names}
    digest = hashlib.sha256(json.dumps(called, sort_keys=True, default=str).encode())
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        # Padding and truncation hold the settings of the last call.
        content = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
        digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.digest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(_without_origin(path))
    return digest.digest()


def _without_origin(path: Path) -> bytes:
    """A file of a saved tokenizer, without settings that do not affect tokenization (path, version, chat template)."""
    if path.name != "tokenizer_config.json":
        return path.read_bytes()
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in ("name_or_path", "transformers_version", "chat_template"):
        settings.pop(name, None)
    return json.dumps(settings, sort_keys=True).encode()
