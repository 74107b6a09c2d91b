"""A batch embedded in chunks gives the gradients of the whole batch, in a part of its memory."""

from functools import partial

import pytest
import torch
from tiny_training import assert_resumes, batches, fit, learned, make_module
from torch import nn

from dml.chunks import check_chunks, in_chunks
from dml.encoder import Encoder, Head, Trunk, pooled_features
from dml.errors import ConfigurationError
from dml.losses import Circle, MultiSimilarity, ProxyNCA, SmoothAP
from dml.losses.multi_level_distance import MultiLevelDistance
from dml.memory import CrossBatchMemory
from dml.miners import multi_similarity

LABELS = torch.arange(11) // 3


def make(name: str = "test_resnet", freeze_bn: bool = True, **kwargs) -> Encoder:
    """A small encoder in float64, with BatchNorm statistics that are not those of a fresh layer."""
    torch.manual_seed(0)
    trunk = Trunk(name, freeze_bn=freeze_bn, kwargs=kwargs)
    encoder = Encoder(trunk, Head(pooled_features(trunk, "avg"), 8)).double()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return encoder.train()


def gradients(encoder: Encoder, chunks: int, loss: nn.Module, extras: bool = False) -> list:
    """Of one step, from the same random state. extras: with a miner, a memory and a regulariser."""
    torch.manual_seed(1)
    images = torch.randn(len(LABELS), 3, 32, 32, dtype=torch.float64)
    regularizer = MultiLevelDistance()
    modules = nn.ModuleList([encoder, loss, regularizer])
    modules.zero_grad()
    vectors = in_chunks(encoder.vectors, images, chunks)
    embeddings = encoder.scale(vectors)
    if not extras:
        value = loss(embeddings, LABELS)
    else:
        value = loss(embeddings, LABELS, multi_similarity(0.1)(embeddings, LABELS))
        memory = CrossBatchMemory(20, 8)
        memory.double().enqueue(torch.randn(9, 8), torch.arange(9) % 4)
        value = value + loss(embeddings, LABELS, **memory.enqueue(embeddings, LABELS))
        value = value + regularizer(vectors, LABELS)
    value.backward()
    return [value.detach(), *(p.grad for p in modules.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("loss", [Circle(), SmoothAP(), ProxyNCA(4, 8).double()], ids=str)
@pytest.mark.parametrize("chunks", [2, 4, 11])
def test_the_gradients_are_those_of_the_whole_batch(name, loss, chunks):
    encoder = make(name, **({"img_size": 32} if name == "test_vit" else {}))
    whole, parts = (gradients(encoder, n, loss) for n in (1, chunks))
    assert len(whole) == len(parts) > 10
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-12)


def test_miner_memory_and_regulariser_see_the_whole_batch():
    encoder, loss = make(), MultiSimilarity()
    whole, parts = (gradients(encoder, n, loss, extras=True) for n in (1, 3))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-12)


def test_both_passes_draw_the_same_random_numbers():
    """Else the second would carry the gradient of other embeddings: with dropout, noise."""
    dropout, weight = nn.Dropout(0.5), torch.ones(6, requires_grad=True)
    seen = []

    def embed(part):
        seen.append(dropout(part * weight))
        return seen[-1]

    images = torch.ones(4, 6)
    state = torch.get_rng_state()
    in_chunks(embed, images, 2).square().sum().backward()
    after = torch.get_rng_state()
    first = torch.cat(seen[:2]).detach()
    assert 0 < (first == 0).sum() < first.numel()
    torch.testing.assert_close(weight.grad, 2 * first.square().sum(0))
    torch.set_rng_state(state)
    dropout(torch.ones(2, 6)), dropout(torch.ones(2, 6))
    assert torch.equal(torch.get_rng_state(), after)  # the backward pass draws nothing more


def test_activations_of_one_chunk_live_at_a_time():
    """What is kept between the passes are the embeddings."""
    seen = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.clone())
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            (saved,) = ctx.saved_tensors
            seen.append(len(saved))
            return gradient

    weight = torch.ones(6, requires_grad=True)
    held = []

    def pack(tensor):
        held.append(tensor.numel())
        return tensor

    def embed(part):
        return Watched.apply(part * weight)

    images = torch.ones(12, 6)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = in_chunks(embed, images, 4)
    assert sum(held) <= images.numel()  # no more than the images themselves, which are there anyway
    out.sum().backward()
    assert seen == [3, 3, 3, 3]


def test_bf16_passes_agree():
    """The second pass runs outside training_step; it must take up autocast again."""
    encoder = make().float()
    images = torch.randn(6, 3, 32, 32)
    kinds = []

    def embed(part):
        pooled = encoder.pooled(part)
        kinds.append(pooled.dtype)
        return encoder.project(pooled)

    with torch.autocast("cpu", torch.bfloat16):
        vectors = in_chunks(embed, images, 3)
    vectors.sum().backward()
    assert len(kinds) == 6
    assert len(set(kinds)) == 1


def test_batch_statistics_are_refused_by_name():
    encoder = make(freeze_bn=False)
    with pytest.raises(ConfigurationError, match=r"trainer\.batch_chunks=2.*\n?.*freeze_bn=true"):
        check_chunks(encoder, 2)
    check_chunks(encoder, 1)


def test_frozen_statistics_and_other_norms_pass():
    check_chunks(make(), 4)
    check_chunks(make("test_vit", freeze_bn=False, img_size=32), 4)


def test_statistics_of_the_batch_without_running_ones_are_refused():
    """A BatchNorm that keeps no statistics uses the batch's in evaluation mode, too."""
    encoder = make()
    encoder.head.norm = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(ConfigurationError, match=r"head\.norm"):
        check_chunks(encoder, 2)


def test_training_in_chunks_is_training():
    """Through Lightning, with clipping and a memory: the same weights."""
    trained = []
    for chunks in (1, 3):
        memory = CrossBatchMemory(20, 8, start_step=1)
        module = make_module(batch_chunks=chunks, memory=memory)
        fit(module, batches(4), gradient_clip_val=0.1)
        trained.append(learned(module))
    start = learned(make_module(memory=CrossBatchMemory(20, 8)))
    for key, value in trained[0].items():
        torch.testing.assert_close(trained[1][key], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(start[key], value) for key, value in trained[0].items())


def test_two_halves_in_chunks_make_the_same_weights_as_one_run(tmp_path):
    more = {"batch_chunks": 2, "drop_rate": 0.3, "optimizer": torch.optim.AdamW}
    assert_resumes(partial(make_module, **more), tmp_path)


def test_scaled_losses_give_scaled_gradients():
    """What 16-mixed does: its scaler multiplies the loss, and divides the gradients."""
    encoder, images = make(), torch.randn(6, 3, 32, 32, dtype=torch.float64)
    found = []
    for chunks, scale in ((1, 1), (3, 1024)):
        encoder.zero_grad()
        value = Circle()(encoder.scale(in_chunks(encoder.vectors, images, chunks)), LABELS[:6])
        torch.amp.GradScaler("cpu", init_scale=scale).scale(value).backward()
        found.append([p.grad / scale for p in encoder.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-12)
