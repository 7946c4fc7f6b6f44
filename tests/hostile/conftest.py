"""A target and a drafter to be attacked, both with a key; the target's own drafter is hostile."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from draft.harness import FINGERPRINT, draft_service
from draft.hostile import AdversarialDrafter, serving
from draft.reference import MAX_POSITIONS, VOCAB_SIZE, tiny_model
from exactness.loop_thread import ServiceThreads
from hostile.ground import KEY, Ground
from outrider_draft.metrics import DraftMetrics
from outrider_draft.model_proposer import ModelProposer
from outrider_draft.proposer import Description
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.server import ServerSettings
from outrider_target.drafting.remote import link
from outrider_target.settings import SpeculationDefaults
from prometheus_client import CollectorRegistry
from service.harness import PATIENCE, RunningService, settings_for
from service.tiny_folder import save_tiny_folder

LOCKED = ServerSettings(api_key=KEY, grace_seconds=PATIENCE)


@pytest.fixture(scope="session")
def ground(threads: ServiceThreads, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Both services, and a completion of each that nothing has happened to yet."""
    hostile = AdversarialDrafter(seed=7)
    hostile.repertoire = ["wrong_tokens"]
    with (
        pytest.MonkeyPatch.context() as patch,
        threads.drafters.entered(serving(hostile)) as linked,
        threads.drafters.entered(draft_service(_model(), server=LOCKED)) as drafter,
        RunningService(
            settings_for(
                save_tiny_folder(tmp_path_factory.mktemp("hostile") / "tiny"),
                server=LOCKED,
                drafts=(linked.address,),
                speculation=SpeculationDefaults(
                    num_assistant_tokens_schedule="constant", draft_timeout_ms=50
                ),
            )
        ) as target,
        grpc.insecure_channel(target.address) as to_target,
        grpc.insecure_channel(drafter.address) as to_drafter,
    ):
        # A flood has it expelled, if it arrives in time; the next attack need not wait a minute.
        patch.setattr(link, "_QUARANTINE", 0.2)
        yield Ground(to_target, to_drafter, hostile)


def _model() -> ModelProposer:
    description = Description("model", "tiny", VOCAB_SIZE, FINGERPRINT, MAX_POSITIONS)
    runner = RaggedRunner(tiny_model(), num_blocks=128, block_size=4)
    return ModelProposer(runner, description, DraftMetrics(CollectorRegistry()))
