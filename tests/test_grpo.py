"""The tensor half of perl/grpo.py against the equations,
and the shared-prefix row against a padded batch."""

import doctest
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from perl import grpo
from perl.grpo import (
    LogprobHead,
    Policy,
    Row,
    advantages,
    grpo_loss,
    k3,
    layout,
    rollout_mean,
    token_mean,
)

IMAGE, VIDEO = 5, 6
ROOT = Path(__file__).resolve().parents[1]


def test_doctests():
    assert doctest.testmod(grpo).failed == 0


# --- Eqs. 4-5 ---


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 0.9, 1.0]), min_size=12, max_size=12),
        min_size=1,
        max_size=5,
    )
)
def test_advantages_are_the_equations(rewards):
    ours = advantages(torch.tensor(rewards))
    for row, A in zip(rewards, ours.tolist()):
        mean = math.fsum(row) / 12  # Eq. 4
        spread = math.sqrt(math.fsum((r - mean) ** 2 for r in row) / 12)  # 1/N
        expected = [0.0] * 12 if len(set(row)) == 1 else [(r - mean) / spread for r in row]  # Eq. 5
        assert A == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("r", [0.0, 0.1, 0.3, 1.0, 1e-30])
@pytest.mark.parametrize("n", [1, 3, 6, 7, 12, 49])
def test_no_spread_is_exactly_zero(r, n):
    """Also where the mean of n equal numbers is not that number: 0.1 * 3 / 3."""
    A = advantages(torch.full((3, n), r, dtype=torch.float64))
    assert torch.equal(A, torch.zeros(3, n))


def test_merged_baseline_differs_from_two_groups():
    original, permuted = torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[0.0, 0, 0, 1]])
    merged = advantages(torch.cat([original, permuted], dim=1))
    assert merged[0, :4].mean() > 0.4 and merged[0, 4:].mean() < -0.4
    assert advantages(original).mean().abs() < 1e-6  # separate groups can't tell the orders apart


REWARDS = st.lists(st.sampled_from([0.0, 0.1, 0.9, 1.0]), min_size=4, max_size=4)


@given(st.lists(REWARDS, min_size=1, max_size=5))
def test_each_question_is_centred_alone(rewards):
    r = torch.tensor(rewards)
    A = advantages(r)
    assert A.shape == r.shape and A.dtype == torch.float32
    assert torch.allclose(A.sum(dim=1), torch.zeros(len(r)), atol=1e-5)
    assert torch.equal(A, torch.cat([advantages(row[None]) for row in r]))


@given(st.lists(st.integers(-(10**9), 10**9).map(lambda i: i / 1000), min_size=1, max_size=8))
def test_advantages_are_finite_and_bounded(rewards):
    """|A| <= sqrt(N - 1), reached by one right answer among N; a lone rollout has nothing to be
    compared with."""
    A = advantages(torch.tensor([rewards], dtype=torch.float64))
    assert torch.isfinite(A).all() and A.abs().max() <= math.sqrt(max(0, len(rewards) - 1)) * (
        1 + 1e-5
    )


# --- Eq. 6 ---


def ragged(seed, groups=5):
    """Random rollouts: lengths, per-token log-probabilities, one advantage each."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (groups,), generator=g)
    N = int(lengths.sum())
    logp, old, ref, sampler = (
        torch.randn(4, N, generator=g, dtype=torch.float64) * 0.3 - 2.0
    ).unbind()
    return lengths, logp, old, ref, sampler, torch.randn(groups, generator=g, dtype=torch.float64)


def loss_by_loops(lengths, logp, old, ref, sampler, A, low, high, beta, cap):
    """Eq. 6 as it is printed, one token at a time; also the gradient with respect to logp."""
    J, start, K = torch.zeros((), dtype=torch.float64), 0, len(lengths)
    for k, T in enumerate(lengths.tolist()):
        for t in range(start, start + T):
            rho = torch.exp(logp[t] - old[t])
            clipped = torch.clamp(rho, 1 - low, 1 + high)
            d = ref[t] - logp[t]
            kl = torch.exp(d) - d - 1
            tis = min(math.exp(old[t] - sampler[t]), cap)
            J = J + (tis * torch.min(rho * A[k], clipped * A[k]) - beta * kl) / T / K
        start += T
    return -J


@pytest.mark.parametrize("seed", range(6))
def test_loss_and_gradient_are_equation_6(seed):
    lengths, logp, old, ref, sampler, A = ragged(seed)
    ours, loops = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    loss, parts = grpo_loss(
        ours,
        old,
        ref,
        sampler,
        A.repeat_interleave(lengths),
        rollout_mean(lengths, len(lengths)).double(),
        clip_low=0.2,
        clip_high=0.28,
        beta=0.1,
        tis_cap=1.5,
    )
    expected = loss_by_loops(lengths, loops, old, ref, sampler, A, 0.2, 0.28, 0.1, 1.5)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(ours.grad, loops.grad, atol=1e-6)
    assert 0 < parts["clip_share"] < 1  # the clip was at work


def group_of(seed):
    """Questions in several orders, n rollouts each, ragged: rewards (Q, (n_s+1) n) and what
    `ragged` draws for them."""
    g = torch.Generator().manual_seed(seed)
    Q, orders, n = (int(torch.randint(1, high, (), generator=g)) for high in (5, 4, 7))
    rewards = torch.randint(0, 3, (Q, orders * n), generator=g).double() / 2
    return rewards, *ragged(seed, groups=rewards.numel())[:5]


def advantages_by_loops(rewards):
    """Eqs. 4-5, one reward at a time: a list over all rollouts of all questions."""
    A = []
    for group in rewards.tolist():
        baseline = sum(group) / len(group)
        spread = math.sqrt(sum((r - baseline) ** 2 for r in group) / len(group))
        A += [0.0 if len(set(group)) == 1 else (r - baseline) / spread for r in group]
    return torch.tensor(A, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(40))
def test_from_rewards_to_gradient_on_ragged_groups(seed):
    """All of Eqs. 4-6 in micro-batches of one question each, against the float64 loops over the
    whole batch at once."""
    rewards, lengths, logp, old, ref, sampler = group_of(seed)
    (Q, per_question), K = rewards.shape, rewards.numel()
    ours, loops = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    A, total, start = advantages(rewards), 0.0, 0
    for q in range(Q):
        T = lengths[q * per_question : (q + 1) * per_question]
        s = slice(start, start := start + int(T.sum()))
        loss, _ = grpo_loss(
            ours[s], old[s], ref[s], sampler[s], A[q].repeat_interleave(T), rollout_mean(T, K)
        )
        loss.backward()
        total += loss.item()
    expected = loss_by_loops(
        lengths, loops, old, ref, sampler, advantages_by_loops(rewards), 0.2, 0.2, 0.01, 2.0
    )
    expected.backward()
    assert total == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(ours.grad, loops.grad, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_several_updates_with_fixed_old_policy(seed):
    """Gradient ascent on a table of logits, pi_old fixed while rho leaves 1 and the clip sets in:
    weights equal the loops'."""
    rewards, lengths, _, _, ref, sampler = group_of(seed + 100)
    N, V = len(ref), 7
    g = torch.Generator().manual_seed(seed)
    table, tokens = (
        torch.randn(N, V, generator=g, dtype=torch.float64),
        torch.randint(V, (N, 1), generator=g),
    )
    log_pi = lambda logits: logits.log_softmax(-1).gather(1, tokens)[:, 0]  # noqa: E731
    old, thetas, clipped = log_pi(table), [table.clone(), table.clone()], 0.0
    A = advantages_by_loops(rewards)
    for _ in range(5):
        for i, theta in enumerate(thetas):
            theta = theta.requires_grad_()
            if i == 0:
                loss, parts = grpo_loss(
                    log_pi(theta),
                    old,
                    ref,
                    sampler,
                    A.repeat_interleave(lengths),
                    rollout_mean(lengths, len(lengths)),
                )
                clipped += parts["clip_share"].item()
            else:
                loss = loss_by_loops(
                    lengths, log_pi(theta), old, ref, sampler, A, 0.2, 0.2, 0.01, 2.0
                )
            (grad,) = torch.autograd.grad(loss, theta)
            thetas[i] = theta.detach() - 5.0 * grad
    assert clipped > 0 and (thetas[0] - table).abs().max() > 0.1
    assert torch.allclose(*thetas, atol=1e-5)


def test_a_token_the_old_policy_excluded_leaves_the_loss_finite():
    lengths, A = torch.tensor([1, 1, 1]), torch.tensor([1.0, -1.0, 0.0])
    logp, old = torch.zeros(3, requires_grad=True), torch.full((3,), -1000.0)
    loss, _ = grpo_loss(logp, old, old, old, A, rollout_mean(lengths, 3))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logp.grad).all()


def test_micro_batches_add_up():
    """8 x 1 == 1 x 8: shares of the global mean, unequal lengths included."""
    lengths, logp, old, ref, sampler, A = ragged(7, groups=8)
    tokens = A.repeat_interleave(lengths)
    whole, _ = grpo_loss(logp, old, ref, sampler, tokens, rollout_mean(lengths, 8).double())
    parts, start = 0.0, 0
    for T in lengths:
        s = slice(start, start := start + int(T))
        weight = rollout_mean(T[None], 8).double()
        parts += grpo_loss(logp[s], old[s], ref[s], sampler[s], tokens[s], weight)[0].item()
    assert parts == pytest.approx(whole.item(), abs=1e-9)


def test_weights_of_both_means():
    lengths = torch.tensor([1, 4])
    assert rollout_mean(lengths, 2).tolist() == pytest.approx([0.5, 0.125, 0.125, 0.125, 0.125])
    assert token_mean(lengths, 5).tolist() == pytest.approx([0.2] * 5)


def test_on_policy_gradient_flows():
    """One update: pi_old is pi, rho is 1, the loss is minus the mean advantage, and the gradient
    is not zero."""
    lengths = torch.tensor([2, 3])
    logp = torch.full((5,), -1.0, requires_grad=True)
    A = torch.tensor([1.0, -1.0]).repeat_interleave(lengths)
    same = logp.detach()
    loss, parts = grpo_loss(logp, same, same, same, A, rollout_mean(lengths, 2))
    loss.backward()
    assert (
        loss.item() == pytest.approx(0.0, abs=1e-7)
        and parts["kl"] == 0
        and parts["tis_weight"] == pytest.approx(1)
    )
    assert logp.grad.tolist() == pytest.approx([-0.25, -0.25, 1 / 6, 1 / 6, 1 / 6])


@given(st.floats(-1e4, 0), st.floats(-1e4, 0))
def test_k3_is_finite_and_not_negative(a, b):
    kl = k3(torch.tensor([a]), torch.tensor([b]))
    assert torch.isfinite(kl).all() and kl.item() >= 0


# --- The shared-prefix row ---


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=200,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            tie_word_embeddings=False,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=64,
            num_heads=2,
            out_hidden_size=64,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=56,
            fullatt_block_indexes=[1],
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    model = Qwen2_5_VLForConditionalGeneration._from_config(
        config, attn_implementation="sdpa"
    ).train()
    with torch.no_grad():  # larger weights than the initialisation's, so that every path matters
        for p in model.parameters():
            p.mul_(3.0) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    return model


def picture(key, height, width, g):
    """A picture of height x width merged tokens."""
    patches = torch.randn(4 * height * width, 1176, generator=g)
    return SimpleNamespace(
        key=key, pixel_values=patches, grid_thw=torch.tensor([1, 2 * height, 2 * width])
    )


def random_rows(seed):
    """Two orders of one question with three pictures, and another question: 4, 1 and 3 rollouts
    of unequal lengths."""
    g = torch.Generator().manual_seed(seed)
    a, b, c = picture("a", 2, 3, g), picture("b", 3, 3, g), picture("c", 1, 2, g)

    def row(pictures, lengths):
        ids = []
        for image in pictures:
            words = torch.randint(
                10, 200, (int(torch.randint(1, 4, (), generator=g)),), generator=g
            ).tolist()
            ids += [*words, 3, *[IMAGE] * (int(image.grid_thw.prod()) // 4), 4]
        ids += torch.randint(10, 200, (5,), generator=g).tolist()
        return Row(
            torch.tensor(ids),
            tuple(pictures),
            tuple(torch.randint(10, 200, (T,), generator=g) for T in lengths),
        )

    return [row([a, b, c], [7, 1, 4, 7]), row([c, a, b], [3]), row([b], [2, 6, 5])]


def padded_logps(model, rows, temperature):
    """The same log-probabilities the usual way: every rollout
    its own row, padded on the right, images repeated."""
    model.model.language_model.config._attn_implementation = "sdpa"
    logps = []
    for row in rows:
        P, n, T = len(row.prompt_ids), len(row.responses), max(len(o) for o in row.responses)
        ids, mask = torch.zeros(n, P + T, dtype=torch.long), torch.zeros(n, P + T, dtype=torch.long)
        for k, o in enumerate(row.responses):
            ids[k, : P + len(o)] = torch.cat([row.prompt_ids, o])
            mask[k, : P + len(o)] = 1
        # (n, P + T, D)
        hidden = model.model(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=(ids == IMAGE).int(),
            use_cache=False,
            pixel_values=torch.cat([i.pixel_values for i in row.images]).repeat(n, 1),
            image_grid_thw=torch.stack([i.grid_thw for i in row.images]).repeat(n, 1),
        ).last_hidden_state
        logits = (hidden @ model.lm_head.weight.t() / temperature).float()
        logits[..., [IMAGE, VIDEO]] = float("-inf")
        logp = logits.log_softmax(-1)
        logps += [
            logp[k, P - 1 : P - 1 + len(o)].gather(1, o[:, None])[:, 0]
            for k, o in enumerate(row.responses)
        ]
    return torch.cat(logps)


def gradients(model, scalar):
    model.zero_grad()
    scalar.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_row_equals_padded_batch(model, temperature, checkpointing, monkeypatch):
    monkeypatch.setattr(LogprobHead, "CHUNK", 5)  # several chunks, the last one short
    rows = random_rows(1)
    weight = torch.randn(
        sum(len(o) for row in rows for o in row.responses),
        generator=torch.Generator().manual_seed(2),
    )
    padded = padded_logps(model, rows, temperature)
    expected = gradients(model, (weight * padded).sum())
    policy = Policy(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ours, entropy = policy(rows, temperature)
    got = gradients(model, (weight * ours).sum())
    model.gradient_checkpointing_disable()
    assert (ours - padded).abs().max() < 2e-5
    assert (
        ours.std() > 0.5
        and entropy.shape == ours.shape
        and (entropy > 0).all()
        and not entropy.requires_grad
    )
    for name, g in expected.items():
        assert g.abs().max() > 0, name  # every parameter takes part, the vision tower's too
        assert (got[name] - g).norm() <= 2e-5 * g.norm() + 1e-7, name


def test_order_of_images_reaches_the_model(model):
    """The same text with two pictures exchanged has other
    log-probabilities: the images are in their slots."""
    g = torch.Generator().manual_seed(3)
    a, b = picture("a", 2, 2, g), picture("b", 2, 2, g)
    ids = torch.tensor([11, 3, *[IMAGE] * 4, 4, 3, *[IMAGE] * 4, 4, 12])
    o = (torch.tensor([20, 21, 22]),)
    policy = Policy(model)
    ab, ba, both = policy([Row(ids, (a, b), o)])[0], policy([Row(ids, (b, a), o)])[0], None
    # Each picture is encoded once, and lands in both rows.
    both = policy([Row(ids, (a, b), o), Row(ids, (b, a), o)])[0]
    assert (ab - ba).abs().max() > 1e-3
    assert torch.allclose(both, torch.cat([ab, ba]), atol=1e-5)


def test_each_picture_is_encoded_once(model):
    patches = []
    hook = model.model.visual.register_forward_pre_hook(
        lambda module, args: patches.append(len(args[0]))
    )
    rows = random_rows(4)
    Policy(model)(rows)
    hook.remove()
    assert patches == [4 * (6 + 9 + 2)]  # a, b and c; the rows show seven pictures


def test_head_never_makes_all_logits(model, monkeypatch):
    monkeypatch.setattr(LogprobHead, "CHUNK", 3)
    seen = []
    original = grpo.chunk_logps
    monkeypatch.setattr(
        grpo, "chunk_logps", lambda h, *rest: seen.append(len(h)) or original(h, *rest)
    )
    Policy(model)(random_rows(5))
    assert max(seen) == 3 and sum(seen) == sum([7, 1, 4, 7, 3, 2, 6, 5])


def test_head_memory_does_not_grow_with_positions():
    """At the vocabulary of Qwen2.5-VL-7B, in a process of its own: peak resident memory over what
    was held before."""
    script = r"""
import re, torch
from perl.grpo import LogprobHead
LogprobHead.CHUNK = 128
held = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024  # ru_maxrss knows the parent's
head = LogprobHead(8, 152_064, bias=False)
hidden, targets = torch.randn(4096, 8, requires_grad=True), torch.arange(4096)
before = held()
logp, _ = head(hidden, targets, torch.tensor([5]), 1.0)
logp.sum().backward()
print(held() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )
    # Three to five tensors of a chunk, and what torch loads on first use (3.3 to 5.1 measured);
    # the logits alone would be 32.
    assert 128 * 152_064 * 4 < int(done.stdout) < 8 * 128 * 152_064 * 4


def random_layout(seed):
    """Three rows of random lengths with q, k, v over them, two query heads a key head, and the
    mask of who sees whom."""
    g = torch.Generator().manual_seed(seed)
    size = lambda high: int(torch.randint(1, high, (), generator=g))  # noqa: E731
    rows = [
        Row(torch.zeros(size(6)), (), tuple(torch.zeros(size(5)) for _ in range(size(5))))
        for _ in range(3)
    ]
    row, part = [], []  # the row of each token, and its part: 0 the prompt, 1 .. n a rollout
    for r, x in enumerate(rows):
        row += [r] * (len(x.prompt_ids) + sum(map(len, x.responses)))
        part += [0] * len(x.prompt_ids) + [i + 1 for i, o in enumerate(x.responses) for _ in o]
    row, part, at = torch.tensor(row), torch.tensor(part), torch.arange(len(row))
    sees = (row[:, None] == row) & (at[:, None] >= at) & ((part == 0) | (part[:, None] == part))
    q, k, v = (
        torch.randn(1, heads, len(row), 8, generator=g, requires_grad=True) for heads in (4, 2, 2)
    )
    return rows, q, k, v, sees


def masked(q, k, v, sees):
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=sees, scale=0.3, enable_gqa=True
    ).transpose(1, 2)


def loop_in_place_of_the_kernel(
    q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa
):
    """What the documentation of torch's `varlen_attn` promises for causal attention, sequence by
    sequence, query by query.

    q (L, H, D), k and v (S, H_kv, D); the last query of a sequence stands at its last key."""
    assert window_size == (-1, 0) and enable_gqa and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert len(q) == cu_seq_q[-1] and len(k) == len(v) == cu_seq_k[-1]
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    outputs = []
    for a, b, c, d in zip(cu_seq_q, cu_seq_q[1:], cu_seq_k, cu_seq_k[1:]):
        for i in range(a, b):
            end = d - (b - i) + 1
            weights = (scale * torch.einsum("hd,shd->hs", q[i], k[c:end])).softmax(-1)
            outputs.append(torch.einsum("hs,shd->hd", weights, v[c:end]))
    return torch.stack(outputs)


@pytest.mark.parametrize("kernel", [False, True], ids=["sdpa", "varlen"])
@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_rows_do_not_see_each_other(kernel, seed):
    """Attention over several rows at once equals one full mask: no row sees another, no rollout
    its siblings. Gradients too.

    "varlen": the layout for the CUDA kernel, with a loop in its place."""
    rows, q, k, v, sees = random_layout(seed)
    where = layout(rows)
    if kernel:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grpo, "varlen_attn", loop_in_place_of_the_kernel)
            ours = grpo.varlen_attention(q, k[:, :, where.keys], v[:, :, where.keys], where, 0.3)
    else:
        ours, _ = grpo.shared_prefix_attention(None, q, k, v, None, where, scaling=0.3)
    expected = masked(q, k, v, sees)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed))
    assert ours.shape == expected.shape and torch.allclose(ours, expected, atol=1e-5)
    for a, b in zip(
        *(torch.autograd.grad((weight * o).sum(), (q, k, v)) for o in (ours, expected))
    ):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the varlen kernel needs CUDA")
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)], ids=["sdpa", "varlen"]
)
def test_attention_on_cuda(dtype, tolerance):
    """Both kernels where they run, against the full
    mask in float32 on the same numbers; head_dim 64."""
    for seed in range(8):
        rows, *qkv, sees = random_layout(seed)
        qkv = [torch.cat([x] * 8, dim=-1).detach().to("cuda", dtype).requires_grad_() for x in qkv]
        where = layout(rows)
        where = replace(where, keys=where.keys.cuda())
        ours, _ = grpo.shared_prefix_attention(None, *qkv, None, where, scaling=0.3)
        full = [x.detach().float().requires_grad_() for x in qkv]
        expected = masked(*full, sees.cuda())
        assert (ours.float() - expected).norm() < tolerance * expected.norm()
        for a, b in zip(
            torch.autograd.grad(ours.float().square().sum(), qkv),
            torch.autograd.grad(expected.square().sum(), full),
        ):
            assert (a.float() - b).norm() < 2 * tolerance * b.norm()


@pytest.mark.parametrize("seed", range(5))
def test_predictors_point_at_what_predicts(seed):
    """The predicting position of a rollout's first token is its prompt's last; of token t > 0,
    the token before it."""
    rows = random_layout(seed)[0]
    start, expected = 0, []
    for row in rows:
        last, start = start + len(row.prompt_ids) - 1, start + len(row.prompt_ids)
        for o in row.responses:
            expected += [last, *range(start, start + len(o) - 1)]
            start += len(o)
    assert layout(rows).predictors.tolist() == expected
