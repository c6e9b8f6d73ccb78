"""Merged-group advantage, loss and log-probabilities: the learning signal of PeRL, Eqs. (2)-(6).

A question stands in n_s + 1 orders x_i of its images, the original first; each order has n rollouts
o_ik with rewards r_ik.

    R_bar = mean over ALL ik of r_ik                                                       (4)
    A_ik  = (r_ik - R_bar) / sqrt(mean over ALL ik of (r_ik - R_bar)^2)                    (5)
    J     = mean over ALL ik of
              min(rho_ik A_ik, clip(rho_ik, 1 - eps, 1 + eps) A_ik) - beta KL              (6)
    rho_ik = pi(o_ik | x_i) / pi_old(o_ik | x_i)

With n_s = 0 these are Eqs. (2)-(3), plain GRPO. Where we differ:

* The paper prints (6) with the ratio of whole rollouts. Like GRPO we take ratio and KL per token,
  and average over the tokens inside each rollout (`rollout_mean`); the release averages over all
  tokens of a micro-batch (`token_mean` is that mean over the mini-batch).
* The engine that samples and the model that learns compute pi_old a little differently. A truncated
  importance weight corrects that; in float32 it is 1, but for rounding.
* The release's spread has 1/(N-1) and a constant; ours is the printed one, and no spread gives
  exactly 0.
* The paper names no eps; 0.2 is the release's.

A prompt with several images is long, and its n rollouts share it. `Policy` computes one row a
prompt:

    [ prompt | o_1 | o_2 | .. | o_n ]      each o_k sees the prompt and itself, causally

so prompt and images cost once instead of n times, and nothing is approximated. Torch only;
transformers is imported inside the class that wraps its model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

# --- Eqs. (4)-(5): one baseline and one spread for all orders of a question ---


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Merged-group advantages: rewards (Q, (n_s+1) n) of Q questions -> the same shape, float32.

    All orders of a question share one baseline, so over the order on which the model does worse
    the advantages sum to less than zero, over the better one to more. Groups of their own sum to
    zero each and could not say that:

    >>> original, permuted = torch.tensor([[1.0, 1, 1, 1]]), torch.tensor([[0.0, 0, 0, 1]])
    >>> advantages(torch.cat([original, permuted], dim=1))  # merged, as in the paper
    tensor([[ 0.7746,  0.7746,  0.7746,  0.7746, -1.2910, -1.2910, -1.2910,  0.7746]])
    >>> advantages(original)  # the same four rollouts alone: no spread, no signal
    tensor([[0., 0., 0., 0.]])
    """
    r = rewards.double()
    no_spread = r.amax(dim=1, keepdim=True) == r.amin(dim=1, keepdim=True)  # (Q, 1)

    R_bar = r.mean(dim=1, keepdim=True)  # Eq. (4)
    A = (r - R_bar) / r.std(dim=1, keepdim=True, correction=0)  # Eq. (5); the spread has 1/N
    return A.masked_fill(no_spread, 0.0).float()


# --- Eq. (6) ---


def k3(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """The k3 estimator of KL(pi || pi_ref) per token: (N,), (N,) -> (N,), float32, never negative.

    exp(d) - 1 - d with d = log pi_ref - log pi (http://joschu.net/blog/kl-approx.html). d is held
    within +-20, so that one token which the reference all but excludes cannot overflow the loss.
    """
    d = (ref_logp.float() - logp.float()).clamp(-20.0, 20.0)
    return d.expm1() - d


def rollout_mean(lengths: torch.Tensor, n_rollouts: int) -> torch.Tensor:
    """Weights of the mean over rollouts of the mean over their tokens: lengths (K,) -> (N,).

    `n_rollouts` counts the rollouts of the GLOBAL mini-batch: weighted sums add up over
    micro-batches and ranks.
    """
    return (1.0 / (lengths * n_rollouts)).repeat_interleave(lengths)


def token_mean(lengths: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """Instead, the weights of one mean over all tokens of the global mini-batch: (K,) -> (N,).

    Long rollouts weigh more (DAPO, arXiv 2503.14476);
    the release does this within each micro-batch.
    """
    return torch.full((int(lengths.sum()),), 1.0 / n_tokens, device=lengths.device)


def grpo_loss(
    logp: torch.Tensor,  # (N,) log pi of every token of every rollout, rollouts end to end
    old_logp: torch.Tensor,  # (N,) log pi_old
    ref_logp: torch.Tensor,  # (N,) log pi_ref; without a reference pass logp.detach()
    sampler_logp: torch.Tensor,  # (N,) log pi_old as the sampling engine computed it
    A: torch.Tensor,  # (N,) the advantage of the token's rollout
    weight: torch.Tensor,  # (N,) rollout_mean or token_mean
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta: float = 0.01,
    tis_cap: float = 2.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Minus Eq. (6) of one micro-batch, as its share of the global mini-batch, and its parts.

    pi_old and the sampler are one policy in two implementations. The clipped term is multiplied
    by min(pi_old / sampler, tis_cap), which corrects what bfloat16 makes of that (truncated
    importance sampling, https://fengyao.notion.site/off-policy-rl). All parts are means under
    `weight`, as the loss is.
    """
    rho = (logp - old_logp).clamp(max=20.0).exp()  # finite, as in `k3`: inf * 0 would be NaN
    clipped = rho.clamp(1.0 - clip_low, 1.0 + clip_high)
    tis = (old_logp - sampler_logp).exp().clamp(max=tis_cap)
    kl = k3(logp, ref_logp)

    J = tis * torch.minimum(rho * A, clipped * A) - beta * kl  # Eq. (6)
    loss = -(weight * J).sum()

    was_clipped = (clipped * A < rho * A).float()
    parts = {
        "kl": kl,
        "clip_share": was_clipped,
        "tis_weight": tis,
    }
    means = {name: (weight * value).sum().detach() for name, value in parts.items()}
    return loss, means


# --- One row a prompt ---


@dataclass(frozen=True)
class Row:
    """[ prompt | o_1 | .. | o_n ]: one image order of a question and its rollouts, on the CPU.

    Images are anything with `key`, `pixel_values` (patches, D) and `grid_thw` (3,); images with
    equal keys are one picture and are encoded once (rollout.Image).
    """

    prompt_ids: torch.Tensor  # (P,) image pads expanded
    images: tuple
    responses: tuple[torch.Tensor, ...]  # n tensors (T_k,)


@dataclass(frozen=True)
class Layout:
    """Who reads whom in rows laid end to end. A span is a prompt, which reads itself, or a
    rollout, which reads its prompt and itself.
    """

    keys: torch.Tensor  # (S,) positions of the keys, span by span
    query_lengths: list[int]  # P for a prompt, T_k for a rollout
    key_lengths: list[int]  # P for a prompt, P + T_k for a rollout
    query_starts: torch.Tensor  # (spans + 1,) int32, where each span's queries begin, and the end
    key_starts: torch.Tensor  # (spans + 1,) int32
    predictors: torch.Tensor  # (N,) the positions that predict the rollouts' tokens

    def to(self, device: torch.device) -> "Layout":
        """The same layout, its tensors on `device`."""
        moved = {}
        for name in ("keys", "query_starts", "key_starts", "predictors"):
            moved[name] = getattr(self, name).to(device)
        return replace(self, **moved)


def layout(rows: Sequence[Row]) -> Layout:
    """The layout of rows laid end to end.

    >>> row = Row(torch.zeros(2), (), (torch.zeros(2), torch.zeros(1)))  # positions 0 1 | 2 3 | 4
    >>> layout([row]).keys.tolist(), layout([row]).predictors.tolist()
    ([0, 1, 0, 1, 2, 3, 0, 1, 4], [1, 2, 1])
    """
    keys, query_lengths, key_lengths, predictors = [], [], [], []
    start = 0
    for row in rows:
        P = len(row.prompt_ids)
        prompt = torch.arange(start, start + P)
        start += P
        keys.append(prompt)
        query_lengths.append(P)
        key_lengths.append(P)

        for response in row.responses:
            T = len(response)
            own = torch.arange(start, start + T)
            start += T
            keys.append(torch.cat([prompt, own]))
            query_lengths.append(T)
            key_lengths.append(P + T)
            # The prompt's last token predicts the first token, each token the next.
            predictors.append(torch.cat([prompt[-1:], own[:-1]]))
    return Layout(
        keys=torch.cat(keys),
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        query_starts=starts_of(query_lengths),
        key_starts=starts_of(key_lengths),
        predictors=torch.cat(predictors),
    )


def starts_of(lengths: Sequence[int]) -> torch.Tensor:
    """Where pieces of these lengths begin, end to end, and where the last one ends.

    >>> starts_of([2, 3]).tolist()
    [0, 2, 5]
    """
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)


def shared_prefix_attention(
    module: nn.Module,
    q: torch.Tensor,  # (1, H, L, D)
    k: torch.Tensor,  # (1, H_kv, L, D)
    v: torch.Tensor,  # (1, H_kv, L, D)
    attention_mask: None,
    layout: Layout,
    scaling: float | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each span, its last query on its last key; returns (1, L, H, D).

    Query i of T sees keys 0 .. i + S - T of S. There is no (L, L) mask
    and no padding, and no rollout meets another: a row costs P^2/2 +
    sum_k T_k (P + T_k/2) pairs of tokens. Called by transformers.
    """
    k, v = k[:, :, layout.keys], v[:, :, layout.keys]  # (1, H_kv, S, D)
    if q.is_cuda and q.dtype != torch.float32:
        return varlen_attention(q, k, v, layout, scaling), None

    outputs = []
    queries = q.split(layout.query_lengths, dim=2)
    keys = k.split(layout.key_lengths, dim=2)
    values = v.split(layout.key_lengths, dim=2)
    for q_s, k_s, v_s in zip(queries, keys, values, strict=True):
        T, S = q_s.shape[2], k_s.shape[2]
        is_prompt = T == S
        mask = None
        if not is_prompt:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        out = F.scaled_dot_product_attention(
            q_s, k_s, v_s, mask, is_causal=is_prompt, scale=scaling, enable_gqa=True
        )
        outputs.append(out)  # (1, H, T, D)
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def varlen_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scaling: float | None
) -> torch.Tensor:
    """All spans in one call of torch's flash kernel,
    bfloat16 on CUDA. Tests check it on a CUDA machine.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (L, H, D), (S, H_kv, D), (S, H_kv, D)
    out = varlen_attn(
        q,
        k,
        v,
        layout.query_starts,
        layout.key_starts,
        max(layout.query_lengths),
        max(layout.key_lengths),
        scale=scaling,
        window_size=(-1, 0),  # causal, the last query on the last key
        enable_gqa=True,
    )
    return out[None]


class LogprobHead(nn.Linear):
    """The language-model head: log-probabilities of
    given tokens, without a (N, V) tensor of logits.

    CHUNK positions at a time make float32 logits, and again in the backward pass. Peak memory: 3,
    at times 5, times CHUNK * V * 4 bytes beside the weight's gradient: 1 to 1.6 GB for V =
    152,064, where all logits of 12 rollouts of 2,048 tokens are 15 GB. One module call holds all
    chunks, so that FSDP gathers once.
    """

    CHUNK = 512

    def forward(
        self,
        hidden: torch.Tensor,  # (N, D)
        targets: torch.Tensor,  # (N,)
        banned: torch.Tensor,  # (B,)
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The targets' log-probabilities at `temperature`
        and the entropy there: (N,) and (N,), float32.
        """
        logps, entropies = [], []
        for h, t in zip(hidden.split(self.CHUNK), targets.split(self.CHUNK), strict=True):
            logp, entropy = checkpoint(
                chunk_logps, h, self.weight, t, banned, temperature, use_reentrant=False
            )
            logps.append(logp)
            entropies.append(entropy)
        return torch.cat(logps), torch.cat(entropies)


def chunk_logps(
    hidden: torch.Tensor,  # (C, D)
    weight: torch.Tensor,  # (V, D)
    targets: torch.Tensor,  # (C,)
    banned: torch.Tensor,  # (B,) tokens that the sampler could not draw
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of the targets (C,) and entropy (C,) of one chunk of positions.

    A (C, V) tensor is the largest thing of the whole update, so the logits give up their name,
    and with it their memory, as soon as there are log-probabilities.
    """
    logp = (hidden @ weight.t()).float().div_(temperature)  # (C, V), logits
    logp = logp.index_fill_(-1, banned, float("-inf")).log_softmax(-1)  # (C, V)
    of_targets = logp.gather(-1, targets[:, None])[:, 0]  # (C,)
    entropy = torch.special.entr(logp.detach().exp()).sum(-1)  # (C,)
    return of_targets, entropy


# --- The vision tower, as a GPU wants it ---


class PatchEmbed(nn.Conv3d):
    """The patch embedding as a matrix product, which it is, kernel and stride being the patch.

    The same parameters under the same names. On an H200 in bfloat16 the convolution's forward took
    seven times as long (cuDNN 9.19; bench/README.md).
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)  # (patches, D)


def window_attention(
    module: nn.Module,
    q: torch.Tensor,  # (1, H, L, D), and so are
    k: torch.Tensor,
    v: torch.Tensor,
    attention_mask: None,
    cu_seq_lens_q: torch.Tensor,  # (windows + 1,) where each begins, and the end
    max_length_q: int,
    scaling: float | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Attention within each window, or each image; returns (1, L, H, D). Called by transformers.

    transformers hands over all windows of a layer at once only where the name of the attention
    holds "flash"; else it calls once a window: 21,120 times a forward for 30 images.
    """
    if q.is_cuda and q.dtype != torch.float32:
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (L, H, D)
        starts = cu_seq_lens_q.to(torch.int32)
        out = varlen_attn(
            q,
            k,
            v,
            starts,
            starts,
            max_length_q,
            max_length_q,
            scale=scaling,
        )
        return out[None], None

    lengths = cu_seq_lens_q.diff().tolist()
    outputs = []
    for q_w, k_w, v_w in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True):
        outputs.append(F.scaled_dot_product_attention(q_w, k_w, v_w, scale=scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


class Policy(nn.Module):
    """log pi of rollouts: a model laid out as transformers' Qwen2.5-VL, reading rows.

    The FSDP root: all happens inside its forward, since submodules called outside would read
    sharded parameters. It needs `.lm_head` and `.model` with `.language_model`, `.visual`,
    `.get_image_features` and `.get_rope_index`.
    """

    def __init__(self, model: nn.Module):
        from transformers import AttentionInterface

        super().__init__()
        AttentionInterface.register("shared_prefix", shared_prefix_attention)
        model.model.language_model.config._attn_implementation = "shared_prefix"
        AttentionInterface.register("windows_flash", window_attention)
        model.model.visual.config._attn_implementation = "windows_flash"
        model.model.visual.patch_embed.proj.__class__ = PatchEmbed

        head = LogprobHead(*model.lm_head.weight.T.shape, bias=False, device="meta")
        head.weight = model.lm_head.weight  # the same parameter under the same name
        model.lm_head = head
        self.model = model

    def forward(
        self, rows: Sequence[Row], temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi(o_ik,t | x_i, o_ik,<t) at `temperature`, and the entropy there (no gradient).

        Both (N,) float32, for all tokens of all rollouts of all rows, end to end.
        """
        config, device = self.model.config, self.model.lm_head.weight.device
        parts, responses = [], []
        for row in rows:
            parts += [row.prompt_ids, *row.responses]
            responses += row.responses
        ids = torch.cat(parts)[None]  # (1, L)
        targets = torch.cat(responses).to(device)  # (N,)
        where = layout(rows).to(device)

        hidden = self.model.model.language_model(
            inputs_embeds=self.embeddings(ids, rows, device),
            position_ids=self.positions(rows).to(device)[:, None],  # (3, 1, L)
            attention_mask={"full_attention": None},
            layout=where,
            use_cache=False,
        ).last_hidden_state[0]  # (L, D)
        banned = torch.tensor([config.image_token_id, config.video_token_id], device=device)
        return self.model.lm_head(hidden[where.predictors], targets, banned, temperature)

    def positions(self, rows: Sequence[Row]) -> torch.Tensor:
        """M-RoPE positions (3, L): each rollout goes
        on where its prompt ends, so n of them overlap.
        """
        positions = []
        for row in rows:
            is_image = (row.prompt_ids == self.model.config.image_token_id).int()[None]
            grids = torch.stack([image.grid_thw for image in row.images])
            position, _ = self.model.model.get_rope_index(
                row.prompt_ids[None], mm_token_type_ids=is_image, image_grid_thw=grids
            )
            positions.append(position[:, 0])  # (3, P)
            for response in row.responses:
                after = torch.arange(len(response)) + position.max() + 1
                positions.append(after.expand(3, -1))  # (3, T_k)
        return torch.cat(positions, dim=1)

    def embeddings(
        self, ids: torch.Tensor, rows: Sequence[Row], device: torch.device
    ) -> torch.Tensor:
        """What the language model reads, (1, L, D): embedded tokens, and the features of the
        images in place of their pads. Each distinct picture is encoded once.

        The model's own forward would do this too, but one that lacks the argument for encoded
        images (transformers before 5.18) drops it without a word, and trains on no picture.
        """
        shown = []
        for row in rows:
            shown += row.images
        images = {image.key: image for image in shown}
        pixels = torch.cat([image.pixel_values for image in images.values()]).to(device)
        grids = torch.stack([image.grid_thw for image in images.values()]).to(device)

        encoded = self.model.model.get_image_features(pixels, grids).pooler_output
        feature_of = dict(zip(images, encoded, strict=True))
        features = torch.cat([feature_of[image.key] for image in shown])  # (image tokens, D)

        is_image = ids == self.model.config.image_token_id  # (1, L)
        if is_image.sum() != len(features):
            raise ValueError(f"{is_image.sum()} image pads, and {len(features)} tokens of images")
        embedded = self.model.model.language_model.embed_tokens(ids.to(device))  # (1, L, D)
        is_image = is_image.to(device)[..., None]  # (1, L, 1)
        return embedded.masked_scatter(is_image, features.to(embedded.dtype))
