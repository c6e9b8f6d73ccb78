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
zero spread gives exactly zero; the mean over tokens is taken inside each rollout, as in Eq. 6 (`token_mean` is the
release's). The paper gives neither weights for the reward nor eps; 0.9, 0.1 and 0.2 are the release's.

A prompt with several images is long, and its n rollouts share it. `Policy` computes one row a prompt, so prompt and images
once instead of n times, exactly:   [ prompt | o_1 | o_2 | .. | o_n ]   each o_k sees the prompt and itself, causally.

Torch only; math-verify and transformers are imported inside the one function that needs each.
"""
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# --- The reward: rule based, strict and total ---
ACCURACY_WEIGHT, FORMAT_WEIGHT = 0.9, 0.1    # the release's; the paper gives none
_WIDE = {c: c - 0xFEE0 for c in range(0xFF01, 0xFF5F)} | dict(zip(map(ord, "　。、−–→⇒"), " .,-->>"))
_WRAP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"(?:(?i:option|choice|answer|image)[ :]*)?"                # (option, the text after it)
                     r"[(\[]?([A-Z])(?:[)\]]?|(?:[:)\]]|\. ) ?(?![ ,;>(])(.*))|.*")
_WORDS = ("one two three four five six seven eight nine ten", "一 二 三 四 五 六 七 八 九 十",
          "first second third fourth fifth sixth seventh eighth ninth tenth")
_NUMBER = {word: str(i) for words in _WORDS for i, word in enumerate(words.split(), start=1)}
_NAME = _NUMBER | dict.fromkeys("yes 是 对 正确".split(), "true") | dict.fromkeys("no 否 错 错误".split(), "false")
_NOUN = r"(?:image|picture|photo|figure|panel|图像|图片|照片|图)"
_INDEX = re.compile(rf"^(?:the |第 ?)?(?:{_NOUN} ?(?:#|no\.|number)? ?)?[(\[]?([0-9]{{1,3}}|{'|'.join(_NUMBER)})"
                    rf"(?:st|nd|rd|th)?[)\]]? ?[张幅个]? ?(?:{_NOUN}|one)?$")
_TUPLE = re.compile(r"([(\[]?) ?((?:[^()\[\]]|[(\[][^()\[\]]*[)\]])*?) ?([)\]]?)|.*")    # (bracket, elements, bracket)
_QUANTITY = re.compile(r"(?:([a-zA-Z]) ?= ?)?(.*?) ?"        # x = 5 cm: (name, term, unit)
                       r"((?:%|°|(?<=[ }])[mgshLNJWV]|[mcdk]m|[mk]g|mL|min|km/h|m/s|hours?|minutes?|seconds?|days?"
                       r"|years?|units?|meters?|inch(?:es)?|feet|ft|miles?|dollars|[厘千]?米|元|度)(?:\^\{?[23]\}?|[²³])?)?")
_TERM = re.compile(r"(?=.*[-0-9\\+*/^])(?!.*(?:\{\{|[0-9] [0-9.]|[0-9)}] ?\( ?-?[0-9.]+ ?\)))"    # to it 5(4) is 9
                   r"(?:\\(?:sqrt|sin|cos|tan|ln|[dtc]?frac|pi|cdot|times|div|alpha|beta|theta)(?![a-zA-Z])"
                   r"|(?<![a-zA-Z])[a-zA-Z]{1,2}(?![a-zA-Z])|(?<![0-9])[0-9]{1,15}(?![0-9])"
                   r"|\^ ?(?:\{ ?-?(?:[0-9]{1,2}|[a-z]) ?\}|[0-9a-z])(?! ?\^)|[-+*/.(){}\[\] ])+")
_STATES = 3000                               # of math-verify's parser, about 10 kB each, until it starts afresh

def boxed(response: str) -> str | None:
    r"""The text in the last \boxed{...}, inner braces kept; None where there is no box or it never closes."""
    text, depth = ["", *re.split(r"\\boxed\s*\{", response)[1:]][-1], 1
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):                       # an escaped brace is text
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return text[:token.start()]
    return None

def format_ok(response: str) -> bool:
    r"""<think>...</think> ... \boxed{...} ..., with one thought. It may be empty, as in the release."""
    thought, _, rest = response.partition("</think>")
    return thought.lstrip().startswith("<think>") and response.count("think>") == 2 and boxed(rest) is not None

def shaped(right: float, formed: bool) -> float:
    """r = 0.9 accuracy + 0.1 format."""
    return ACCURACY_WEIGHT * right + FORMAT_WEIGHT * formed

def reward(response: str, answer: str, options: dict[str, str] | None = None) -> float:
    """The reward of one response. A caller that has its accuracy already calls `shaped`: grading can be slow."""
    return shaped(accuracy(response, answer, options), format_ok(response))

def accuracy(response: str, answer: str, options: dict[str, str] | None = None) -> float:
    r"""1.0 where the last box gives `answer`, else 0.0; total: no response raises, hangs or grows memory. A capital
    letter is an option: `A`, `(A)`, `A.`, `Option A`, `\text{A}`, `A. its text`, or its text alone where no other
    option has it; `a` and `B+A-B` (mathruler's) are not `A`. All else: `_same`."""
    box, gold = boxed(response), _plain(answer)
    if box is None or len(box) > 400 + len(answer) or sum(map(box.count, "([{")) > 40 + len(answer):
        return 0.0
    box, texts = _plain(box), {key: _plain(text) for key, text in (options or {}).items()}
    if gold not in texts and len(keys := [key for key, text in texts.items() if _same(gold, text)]) == 1:
        gold = keys[0]                       # the gold is an option's text
    (named, rest), (letter, text) = (_LETTER.fullmatch(side).groups("") for side in (box, gold))
    if not letter:
        return float(_same(box, gold))
    texts = texts or {letter: text}
    if not named:
        return float([key for key, text in texts.items() if _same(box, text)] == [letter])
    agrees = _same(rest, texts[named]) if texts.get(named) else not re.search(r"\b[A-Z]\b", rest)    # "A: or B"
    return float(named == letter and (agrees or not rest))

def _plain(text: str) -> str:
    """Without wide forms, text commands, dollar signs, thousands separators and the final stop."""
    text = _WRAP.sub(r" \1 ", _WRAP.sub(r" \1 ", text.translate(_WIDE)))                       # \textbf{\text{A}}
    text = re.sub(r"\\(?:left|right)(?![a-z])|\\[,;! ]|\\?\$|[\x00-\x1f]", " ", text)
    text = re.sub(r"\\(?:to|rightarrow)(?![a-z])|->", ">", text).replace(r"\%", "%").replace("{,}", ",")
    text = re.sub(r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|degrees?\b)", "°", text)
    text = re.sub(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])", lambda n: n[0].replace(",", ""), text)
    text = re.sub(r"\s+", " ", text).strip(" *").removesuffix(".").strip()
    return re.sub(r"^(?:[A-H]{2,}|[A-H](?: [A-H])+|\d(?: \d)+|(?:\(\w\)){2,})$",            # BA, B A, (B)(A): B,A
                  lambda run: ",".join(re.findall(r"\w", run[0])), text)

def _same(box: str, gold: str) -> bool:
    r"""Equal as text (yes is true, `Image 2` and `the second image` are 2), as orders and tuples, or as quantities.
    A dropped unit is forgiven, another unit is not. 50% is 0.5, and 50 with its sign dropped; not so up to 1."""
    texts = [_INDEX.sub(r"\1", re.sub(r" ?([-=+*/<>(){}|,:]) ?", r"\1", side).casefold()) for side in (box, gold)]
    if len({_NAME.get(text, text) for text in texts}) == 1:
        return gold != ""
    (a, x, b), (c, y, d) = (_TUPLE.fullmatch(side).groups(side) for side in (box, gold))
    parts, golds = (re.split(r" ?[,;>] ?(?![^(\[]*[)\]])", inner) for inner in (x, y))
    if max(len(parts), len(golds)) > 1:      # orders stand in any brackets, but (0,1) is not [0,1]
        alike = a + b == c + d or not a + b or not c + d or len(golds) > 2
        return alike and len(parts) == len(golds) and all(map(_same, parts, golds))
    (name, x, unit), (gold_name, y, gold_unit) = (_QUANTITY.fullmatch(side).groups() for side in (box, gold))
    names, units = {name, gold_name, None}, {unit, gold_unit, None}
    if 3 in (len(names), len(units)) or (y := _value(y)) is None or (x := _value(x)) is None:
        return False
    p, q = (z / 100 if u == "%" else z for z, u in ((x, unit), (y, gold_unit)))
    return any(abs(v - w) <= 1e-9 + 1e-6 * abs(w) for v, w in ((p, q), (x, y))[:1 + (abs(y) > 1)])

def _value(latex: str) -> complex | None:
    """The value of a term, each variable at a fixed generic point: symbolic simplification may cost what the response
    likes. None where it is no term or a costly one: math-verify's time limit (signal.alarm) needs the main thread."""
    latex = re.sub(r"^(-?[0-9]+) ([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}", latex)              # 1 1/2
    size = math.prod(int(p) or 1 if p.isdigit() else 4 for p in re.findall(r"\^[ {-]*([0-9]+|[a-z])", latex))
    few = latex.count("{") <= 12 and len(re.findall(r"[(\[]", latex)) <= 3 >= len(re.findall(r"\\(?:s|co|ta|l)", latex))
    if size > 200 or len(latex) > 100 or not few or not _TERM.fullmatch(latex):
        return None
    from latex2sympy2_extended.antlr_parser import PSParser
    from math_verify import LatexExtractionConfig, parse
    if sum(len(dfa.states) for dfa in PSParser.decisionsToDFA) > _STATES:                      # it never forgets
        PSParser.decisionsToDFA = [type(dfa)(dfa.atnStartState, dfa.decision) for dfa in PSParser.decisionsToDFA]
        PSParser.sharedContextCache = type(PSParser.sharedContextCache)()
    try:
        term = parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None)[0]
        return complex(term.evalf(15, subs={s: 0.5 + sum(map(ord, s.name)) % 89 / 31 for s in term.free_symbols}))
    except Exception:                        # antlr and sympy raise anything on malformed terms
        return None

# --- Eqs. 4-5: one baseline and one spread for all orders of a question ---
def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Merged-group advantages, Eqs. 4-5: rewards (Q, (n_s+1) n) -> (Q, (n_s+1) n), float32.

    All orders of a question share one baseline and one spread, so the order on which the model does worse gets negative
    advantages as a whole, and the better one positive ones. Two separate groups could not say that:

    >>> original, permuted = torch.tensor([[1.0, 1, 1, 1]]), torch.tensor([[0.0, 0, 0, 1]])
    >>> advantages(torch.cat([original, permuted], dim=1))    # merged, as in the paper
    tensor([[ 0.7746,  0.7746,  0.7746,  0.7746, -1.2910, -1.2910, -1.2910,  0.7746]])
    >>> advantages(original)                                  # the same four rollouts alone: no spread, no signal
    tensor([[0., 0., 0., 0.]])
    """
    r = rewards.double()
    centred = r - r.mean(dim=1, keepdim=True)  # Eq. (4): R_bar, over all (n_s+1) n rewards
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()  # (Q, 1), with 1/N
    equal = r.amax(dim=1, keepdim=True) == r.amin(dim=1, keepdim=True)  # then `centred` is rounding error alone
    return torch.where(equal, 0.0, centred / spread).nan_to_num(0.0).float()  # Eq. (5)

# --- Log-probabilities: one row a prompt, shared by its n rollouts ---
@dataclass(frozen=True)
class Row:
    """[ prompt | o_1 | .. | o_n ]: one image order of a question and its rollouts, on the CPU. `images`, in order, are
    anything with `key`, `pixel_values` (patches, D) and `grid_thw` (3,); equal keys share one embedding (rollout.Image)."""
    prompt_ids: torch.Tensor  # (P,) image pads expanded
    images: tuple
    responses: tuple[torch.Tensor, ...]  # n tensors (T_k,)

def shared_prefix_attention(module, q, k, v, attention_mask, segments, scaling=None, **_):
    """Attention over rows laid end to end: prompts see themselves, rollouts their prompt and themselves, both causally.

    q (1, H, L, D), k and v (1, H_kv, L, D); `segments` holds (P, (T_1, .., T_n)) of each row; returns (1, L, H, D). A row
    costs P^2/2 + sum_k T_k (P + T_k) pairs of tokens: no (L, L) mask, nothing masked out but the padding of short rollouts."""
    attend, outputs, start = F.scaled_dot_product_attention, [], 0
    for P, lengths in segments:
        n, T, middle, end = len(lengths), max(lengths), start + P, start + P + sum(lengths)
        q_p, k_p, v_p = (x[:, :, start:middle] for x in (q, k, v))  # (1, H, P, D)
        outputs.append(attend(q_p, k_p, v_p, is_causal=True, scale=scaling, enable_gqa=True)[0].transpose(0, 1))
        own = (x[0, :, middle:end].transpose(0, 1).split(lengths) for x in (q, k, v))  # n tensors (T_k, H, D)
        q_o, k_o, v_o = (nn.utils.rnn.pad_sequence(x, batch_first=True).transpose(1, 2) for x in own)  # (n, H, T, D)
        k_o, v_o = (torch.cat([p.expand(n, -1, -1, -1), o], dim=2) for p, o in ((k_p, k_o), (v_p, v_o)))
        mask = torch.ones(T, P + T, dtype=torch.bool, device=q.device).tril(P)  # padding stands behind every real query
        o = attend(q_o, k_o, v_o, attn_mask=mask, scale=scaling, enable_gqa=True).transpose(1, 2)  # (n, T, H, D)
        outputs.append(o[torch.arange(T, device=q.device) < torch.tensor(lengths, device=q.device)[:, None]])
        start = end
    return torch.cat(outputs)[None], None

class LogprobHead(nn.Linear):
    """The language-model head, returning log-probabilities of given tokens, never a (N, V) tensor of logits.

    A chunk of positions makes its logits in float32, keeps two numbers a position and is recomputed in the backward pass:
    the peak is about 3 * CHUNK * V * 4 bytes, 0.9 GB for V = 152,064. One module call holds all: FSDP gathers once."""
    CHUNK = 512
    def forward(self, hidden, targets, banned, temperature):
        """hidden (N, D), targets (N,), banned (B,) -> logp (N,), entropy (N,), both float32."""
        chunks = zip(hidden.split(self.CHUNK), targets.split(self.CHUNK))
        parts = [checkpoint(_chunk_logps, h, self.weight, t, banned, temperature, use_reentrant=False) for h, t in chunks]
        return tuple(torch.cat(part) for part in zip(*parts))

def _chunk_logps(hidden, weight, targets, banned, temperature):
    logits = (hidden @ weight.t()).float() / temperature  # (C, V)
    logp = logits.index_fill(-1, banned, float("-inf")).log_softmax(-1)  # the sampler could not draw `banned`
    return logp.gather(-1, targets[:, None])[:, 0], torch.special.entr(logp.detach().exp()).sum(-1)

class Policy(nn.Module):
    """The FSDP root: its forward does everything from token ids and pixels to log-probabilities (submodules called outside
    it would read sharded parameters). Wraps a transformers model laid out as Qwen2.5-VL is: `.lm_head`,
    `.model.language_model`, `.model.get_image_features`, `.model.get_rope_index`."""
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
        body, config, device = self.model.model, self.model.config, self.model.lm_head.weight.device
        ids, positions, keep, segments, start = [], [], [], [], 0
        for row in rows:
            P, lengths = len(row.prompt_ids), tuple(len(o) for o in row.responses)
            is_image = (row.prompt_ids == config.image_token_id).int()[None]
            grids = torch.stack([image.grid_thw for image in row.images])
            position, _ = body.get_rope_index(row.prompt_ids[None], mm_token_type_ids=is_image, image_grid_thw=grids)
            following = position.max() + 1 + torch.cat([torch.arange(T) for T in lengths])  # each rollout follows the prompt
            positions.append(torch.cat([position[:, 0], following.expand(3, -1)], dim=1))  # (3, P + sum T_k)
            ids.append(torch.cat([row.prompt_ids, *row.responses]))
            segments.append((P, lengths))
            last, start = start + P - 1, start + P
            for T in lengths:  # the prompt's last token predicts the first token of every rollout
                keep += [last, *range(start, start + T - 1)]
                start += T
        ids = torch.cat(ids).to(device)[None]  # (1, L)
        targets = torch.cat([o for row in rows for o in row.responses]).to(device)  # (N,)

        images = {image.key: image for row in rows for image in row.images}  # each distinct picture is encoded once
        pixels = torch.cat([image.pixel_values for image in images.values()]).to(device)
        grids = torch.stack([image.grid_thw for image in images.values()]).to(device)
        features = dict(zip(images, body.get_image_features(pixels, grids).pooler_output))
        visual = torch.cat([features[image.key] for row in rows for image in row.images])

        x = body.get_input_embeddings()(ids)  # (1, L, D)
        x = x.masked_scatter((ids == config.image_token_id)[..., None], visual.to(x.dtype))
        positions = torch.cat(positions, dim=1).to(device)[:, None]  # (3, 1, L)
        hidden = body.language_model(inputs_embeds=x, position_ids=positions, attention_mask={"full_attention": None},
                                     use_cache=False, segments=tuple(segments)).last_hidden_state[0]  # (L, D)  # fmt: skip
        banned = torch.tensor([config.image_token_id, config.video_token_id], device=device)
        return self.model.lm_head(hidden[torch.tensor(keep, device=device)], targets, banned, temperature)

# --- Eq. 6 ---
def k3(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """The k3 estimator of KL(pi || pi_ref) per token (http://joschu.net/blog/kl-approx.html): non-negative, unbiased. The
    log-ratio is held within +-20, so that one token the reference all but excludes can't overflow the loss."""
    d = (ref_logp.float() - logp.float()).clamp(-20.0, 20.0)
    return d.exp() - d - 1.0

def rollout_mean(lengths: torch.Tensor, n_rollouts: int) -> torch.Tensor:
    """Weights of Eq. 6's mean over rollouts of the mean over tokens: lengths (K,) -> (sum of lengths,), for the `n_rollouts`
    of the GLOBAL mini-batch, so that weighted sums add up over micro-batches and ranks."""
    return (1.0 / (lengths * n_rollouts)).repeat_interleave(lengths)

def token_mean(lengths: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """The release's weights instead: one mean over all `n_tokens` tokens of the global mini-batch."""
    return torch.full((int(lengths.sum()),), 1.0 / n_tokens, device=lengths.device)

def grpo_loss(logp, old_logp, ref_logp, sampler_logp, A, weight, *, clip_low=0.2, clip_high=0.2, beta=0.01, tis_cap=2.0):
    """Minus Eq. 6 of one micro-batch, as its share of the global mini-batch. All arguments (N,): tokens, rollouts end to end.

    logp, old_logp, ref_logp, sampler_logp: log-probabilities under pi, pi_old, pi_ref and in the engine that sampled; A: the
    advantage of the token's rollout; weight: `rollout_mean`. Without a reference pass logp.detach() as ref_logp. pi_old and
    the sampler are one policy in two implementations: min(pi_old / sampler, tis_cap) corrects what bfloat16 makes of that
    (truncated importance sampling, https://fengyao.notion.site/off-policy-rl). Returns the loss and its parts, weighted alike."""
    rho = (logp - old_logp).exp()
    clipped = rho.clamp(1.0 - clip_low, 1.0 + clip_high)
    tis = (old_logp - sampler_logp).exp().clamp(max=tis_cap)
    kl = k3(logp, ref_logp)
    J = tis * torch.minimum(rho * A, clipped * A) - beta * kl  # Eq. (6); with n_s = 0 it is Eq. (3)
    parts = {"kl": kl, "clip_share": (clipped * A < rho * A).float(), "tis_weight": tis}
    return -(weight * J).sum(), {name: (weight * value).sum().detach() for name, value in parts.items()}
