"""Reward, merged-group advantage and loss: the learning signal of PeRL, Eqs. 2-6.

For a question in n_s + 1 image orders x_i (the original first) with n rollouts o_ik each:

    r_ik  = 0.9 accuracy + 0.1 format                                             the reward
    R_bar = mean over all ik of r_ik                                              (4)
    A_ik  = (r_ik - R_bar) / sqrt(mean over all ik of (r_ik - R_bar)^2)           (5)
    J     = mean over all ik of the mean over tokens of
              min(rho A_ik, clip(rho, 1 - eps, 1 + eps) A_ik) - beta KL           (6)
    rho   = pi(o_ik | x_i) / pi_old(o_ik | x_i),  per token

Eqs. 2-3 (plain GRPO) are the case n_s = 0. Where we differ. From the paper: a truncated importance weight corrects the gap
between the engine that samples and the model that learns (1 in float32). From the release: the spread has 1/N, not 1/(N-1);
zero spread gives exactly zero; the mean over tokens is taken inside each rollout, as in Eq. 6 (`token_mean` is what
the release does within each micro-batch). The paper gives neither weights for the reward nor eps; 0.9, 0.1 and 0.2 are the release's.

A prompt with several images is long, and its n rollouts share it. `Policy` computes one row a prompt, so prompt and images
once instead of n times, exactly:   [ prompt | o_1 | o_2 | .. | o_n ]   each o_k sees the prompt and itself, causally.
Torch only; transformers is imported inside the class that wraps its model.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

# --- Eqs. 4-5: one baseline and one spread for all orders of a question ---
def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Merged-group advantages, Eqs. 4-5: rewards (Q, (n_s+1) n) -> (Q, (n_s+1) n), float32.

    All orders of a question share one baseline and one spread, so the order on which the model does worse gets negative
    advantages as a whole, and the better one positive ones. Two separate groups could not say that (the paper's Fig. 9):
    >>> original, permuted = torch.tensor([[1.0, 1, 1, 1]]), torch.tensor([[0.0, 0, 0, 1]])
    >>> advantages(torch.cat([original, permuted], dim=1))    # merged, as in the paper
    tensor([[ 0.7746,  0.7746,  0.7746,  0.7746, -1.2910, -1.2910, -1.2910,  0.7746]])
    >>> advantages(original)                                  # the same four rollouts alone: no spread, no signal
    tensor([[0., 0., 0., 0.]])
    """
    c = dr_grpo(rewards).double()
    spread = c.square().mean(dim=1, keepdim=True).sqrt()  # (Q, 1), with 1/N
    return torch.where(spread > 0, c / spread, 0.0).float()  # Eq. (5); with n_s = 0 it is Eq. (2)

def dr_grpo(rewards: torch.Tensor) -> torch.Tensor:
    """Eq. 4 without Eq. 5, r - R_bar: no division by the spread (Dr. GRPO, arXiv 2503.20783). Shapes as in `advantages`."""
    r = rewards.double()
    equal = r.amax(dim=1, keepdim=True) == r.amin(dim=1, keepdim=True)  # then the difference is rounding error alone
    return (r - r.mean(dim=1, keepdim=True)).masked_fill(equal, 0.0).float()  # Eq. (4)

def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """Each reward against the mean of all others, no spread (RLOO, arXiv 2402.14740). Shapes as in `advantages`."""
    N = rewards.shape[1]
    return dr_grpo(rewards) * (N / max(1, N - 1))

# --- Log-probabilities: one row a prompt, shared by its n rollouts ---
@dataclass(frozen=True)
class Row:
    """[ prompt | o_1 | .. | o_n ]: one image order of a question and its rollouts, on the CPU. `images`, in order, are
    anything with `key`, `pixel_values` (patches, D) and `grid_thw` (3,); equal keys share one embedding (rollout.Image)."""
    prompt_ids: torch.Tensor  # (P,) image pads expanded
    images: tuple
    responses: tuple[torch.Tensor, ...]  # n tensors (T_k,)

def spans(rows: Sequence[Row]) -> tuple[torch.Tensor, list[int], list[int], torch.Tensor]:
    """Who reads whom in rows laid end to end: a prompt its P tokens, a rollout its prompt and its own, P + T_k. Returns the
    positions of the keys, span by span (S,); the lengths of the spans of queries and of keys; and the positions that
    predict the rollouts' tokens (N,): the first token of each is predicted by its prompt's last one."""
    keys, predict, q_lengths, start = [], [], [], 0
    for row in rows:
        keys.append(prompt := torch.arange(start, start := start + len(row.prompt_ids)))
        for o in row.responses:
            keys.append(torch.cat([prompt, torch.arange(start, start := start + len(o))]))
            predict.append(keys[-1][len(prompt) - 1 : -1])
        q_lengths += map(len, (row.prompt_ids, *row.responses))
    return torch.cat(keys), q_lengths, [len(span) for span in keys], torch.cat(predict)

def shared_prefix_attention(module, q, k, v, attention_mask, keys, q_lengths, k_lengths, scaling=None, **_):
    """Attention within each span, the last query on the last key: query i of T sees keys 0 .. i + S - T of S. No (L, L) mask,
    no padding, no rollout meets another: a row costs P^2/2 + sum_k T_k (P + T_k/2) pairs of tokens.
    q (1, H, L, D), k and v (1, H_kv, L, D), the rest from `spans`; returns (1, L, H, D)."""
    k, v, outputs = k[:, :, keys], v[:, :, keys], []  # (1, H_kv, S, D)
    if q.is_cuda and q.dtype != torch.float32:
        return _varlen(q, k, v, q_lengths, k_lengths, scaling), None
    for q_s, k_s, v_s in zip(q.split(q_lengths, dim=2), k.split(k_lengths, dim=2), v.split(k_lengths, dim=2)):
        T, S = q_s.shape[2], k_s.shape[2]
        mask = None if T == S else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        outputs.append(F.scaled_dot_product_attention(q_s, k_s, v_s, mask, is_causal=T == S, scale=scaling, enable_gqa=True))
    return torch.cat(outputs, dim=2).transpose(1, 2), None

def _varlen(q, k, v, q_len, k_len, scale):
    """All spans in one call of the flash-attention kernel in torch, bfloat16. Checked by the tests on a CUDA machine only."""
    starts = [F.pad(torch.tensor(x).cumsum(0), (1, 0)).to(q.device, torch.int32) for x in (q_len, k_len)]
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (L, H, D), (S, H_kv, D), (S, H_kv, D)
    return varlen_attn(q, k, v, *starts, max(q_len), max(k_len), scale=scale, window_size=(-1, 0), enable_gqa=True)[None]

class LogprobHead(nn.Linear):
    """The language-model head, log-probabilities of given tokens without a (N, V) tensor: a chunk of positions at a time makes
    float32 logits, and again in the backward pass. Peak: 3 (at times 5) * CHUNK * V * 4 bytes beside the weight's gradient, 1 to
    1.6 GB for V = 152,064 and 12 x 2,048 tokens, whose logits are 15 GB. One module call holds all chunks: FSDP gathers once."""
    CHUNK = 512
    def forward(self, hidden, targets, banned, temperature):
        """hidden (N, D), targets (N,), banned (B,) -> logp (N,), entropy (N,), both float32."""
        chunks = zip(hidden.split(self.CHUNK), targets.split(self.CHUNK))
        parts = [checkpoint(_chunk_logps, h, self.weight, t, banned, temperature, use_reentrant=False) for h, t in chunks]
        return tuple(torch.cat(part) for part in zip(*parts))

def _chunk_logps(hidden, weight, targets, banned, temperature):
    logp = (hidden @ weight.t()).float().div_(temperature)  # (C, V), logits: one name, so that they are freed
    logp = logp.index_fill_(-1, banned, float("-inf")).log_softmax(-1)  # the sampler could not draw `banned`
    return logp.gather(-1, targets[:, None])[:, 0], torch.special.entr(logp.detach().exp()).sum(-1)

class Policy(nn.Module):
    """The FSDP root: all happens inside its forward (submodules called outside it would read sharded parameters). Wraps a model
    laid out as transformers' Qwen2.5-VL: `.lm_head`, `.model` with `.language_model, .get_image_features, .get_rope_index`."""
    def __init__(self, model: nn.Module):
        from transformers import AttentionInterface
        super().__init__()
        AttentionInterface.register("shared_prefix", shared_prefix_attention)
        model.model.language_model.config._attn_implementation = "shared_prefix"
        model.lm_head.__class__ = LogprobHead  # the same parameter under the same name, another forward
        self.model = model

    def forward(self, rows: Sequence[Row], temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi(o_ik,t | x_i, o_ik,<t) at `temperature`, and the entropy there (no gradient): both (N,) float32, for all
        tokens of all rollouts of all rows, end to end."""
        body, config, device, positions = self.model.model, self.model.config, self.model.lm_head.weight.device, []
        for row in rows:
            is_image, grids = (row.prompt_ids == config.image_token_id).int()[None], torch.stack([i.grid_thw for i in row.images])
            position, _ = body.get_rope_index(row.prompt_ids[None], mm_token_type_ids=is_image, image_grid_thw=grids)
            after = [torch.arange(len(o)).expand(3, -1) + position.max() + 1 for o in row.responses]  # all follow the prompt
            positions.append(torch.cat([position[:, 0], *after], dim=1))  # (3, P + sum T_k)
        ids = torch.cat([part for row in rows for part in (row.prompt_ids, *row.responses)]).to(device)[None]  # (1, L)
        targets = torch.cat([o for row in rows for o in row.responses]).to(device)  # (N,)
        keys, q_lengths, k_lengths, predict = spans(rows)

        images = {image.key: image for row in rows for image in row.images}  # each distinct picture is encoded once
        pixels = torch.cat([image.pixel_values for image in images.values()]).to(device)
        grids = torch.stack([image.grid_thw for image in images.values()]).to(device)
        features = dict(zip(images, body.get_image_features(pixels, grids).pooler_output))
        visual = torch.cat([features[image.key] for row in rows for image in row.images])

        x = body.get_input_embeddings()(ids)  # (1, L, D)
        x = x.masked_scatter((ids == config.image_token_id)[..., None], visual.to(x.dtype))
        hidden = body.language_model(
            inputs_embeds=x, position_ids=torch.cat(positions, dim=1).to(device)[:, None],  # (3, 1, L)
            attention_mask={"full_attention": None}, keys=keys.to(device), q_lengths=q_lengths, k_lengths=k_lengths,
            use_cache=False).last_hidden_state[0]  # (L, D)  # fmt: skip
        banned = torch.tensor([config.image_token_id, config.video_token_id], device=device)
        return self.model.lm_head(hidden[predict.to(device)], targets, banned, temperature)

# --- Eq. 6 ---
def k3(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """The k3 estimator of KL(pi || pi_ref) per token (http://joschu.net/blog/kl-approx.html): non-negative, unbiased. The
    log-ratio is held within +-20, so that one token the reference all but excludes can't overflow the loss."""
    d = (ref_logp.float() - logp.float()).clamp(-20.0, 20.0)
    return d.expm1() - d

def rollout_mean(lengths: torch.Tensor, n_rollouts: int) -> torch.Tensor:
    """Weights of Eq. 6's mean over rollouts of the mean over tokens: lengths (K,) -> (sum of lengths,), for the `n_rollouts`
    of the GLOBAL mini-batch, so that weighted sums add up over micro-batches and ranks."""
    return (1.0 / (lengths * n_rollouts)).repeat_interleave(lengths)

def token_mean(lengths: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """Instead, one mean over all `n_tokens` tokens of the global mini-batch (DAPO, arXiv 2503.14476): long rollouts weigh more."""
    return torch.full((int(lengths.sum()),), 1.0 / n_tokens, device=lengths.device)

def grpo_loss(logp, old_logp, ref_logp, sampler_logp, A, weight, *, clip_low=0.2, clip_high=0.2, beta=0.01, tis_cap=2.0):
    """Minus Eq. 6 of one micro-batch, as its share of the global mini-batch. All arguments (N,): tokens, rollouts end to end.
    logp, old_logp, ref_logp, sampler_logp: log-probabilities under pi, pi_old, pi_ref and in the engine that sampled; A: the
    advantage of the token's rollout; weight: `rollout_mean`. Without a reference pass logp.detach() as ref_logp. pi_old and
    the sampler are one policy in two implementations: min(pi_old / sampler, tis_cap) corrects what bfloat16 makes of that
    (truncated importance sampling, https://fengyao.notion.site/off-policy-rl). Returns the loss and its parts, weighted alike."""
    rho = (logp - old_logp).clamp(max=20.0).exp()  # finite, as in `k3`: inf * 0 would be NaN
    clipped = rho.clamp(1.0 - clip_low, 1.0 + clip_high)
    tis = (old_logp - sampler_logp).exp().clamp(max=tis_cap)
    kl = k3(logp, ref_logp)
    J = tis * torch.minimum(rho * A, clipped * A) - beta * kl  # Eq. (6); with n_s = 0 it is Eq. (3)
    parts = {"kl": kl, "clip_share": (clipped * A < rho * A).float(), "tis_weight": tis}
    return -(weight * J).sum(), {name: (weight * value).sum().detach() for name, value in parts.items()}
