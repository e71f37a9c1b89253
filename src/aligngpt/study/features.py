"""The vision tower's features of all pictures of a study, computed once before its runs."""

from pathlib import Path

import torch

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.device import resolve_device
from aligngpt.model.assembling import assemble
from aligngpt.progress import track
from aligngpt.study.arms import ARMS
from aligngpt.study.data import StudyData
from aligngpt.study.pairs import write_pretraining
from aligngpt.study.plan import Plan
from aligngpt.training.feed.feature_cache import features_kept_for

AT_ONCE = 16


def keep_features(plan: Plan, data: StudyData, folder: Path) -> None:
    """Fill the feature cache with every picture that a run will read, so that no two workers compute the same.

    Args:
        plan: the study.
        data: its pictures.
        folder: for a caption file.
    """
    settings = dict(data.model)
    settings.pop("attention", None)
    model, processor = assemble(settings.pop("vision_tower"), settings.pop("language_model"), **settings)
    model = model.to(resolve_device())
    captions = write_pretraining(ARMS["none"], data.pairs(0.0), 2, 0, folder / "work" / "features").data
    files = [Path(str(captions)), data.questions, *data.tests.values()]
    if data.probe is not None:
        files.append(data.probe.right)
    collator = Collator(processor.tokenizer.pad_token_id)
    for path in files:
        with Rejects(None) as rejects:
            samples = load_samples(path, image_root=data.image_root, rejects=rejects)
        dataset = ConversationDataset(samples, processor, data.image_root, with_levels=False)
        cache = features_kept_for(dataset, model, model.device, in_bfloat16=False)
        dataset.known_features = cache
        # One question per picture is enough.
        first = {sample.images: place for place, sample in reversed(list(enumerate(samples))) if sample.images}
        places = sorted(first.values())
        parts = [places[start : start + AT_ONCE] for start in range(0, len(places), AT_ONCE)]
        with torch.no_grad():
            for part in track(parts, f"features: {path.name}", unit="batches"):
                rows = [dataset[place] for place in part]
                batch = collator.with_ids(rows)
                cache.complete(model, batch, in_bfloat16=False)
