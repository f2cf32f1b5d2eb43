"""Make ``tokenizer.json`` from a checkpoint's sentencepiece model, so that run time needs only ``tokenizers``.

Encoding equals sentencepiece's. Three things stand in the way, and this module settles them:

* sentencepiece merges by the score of the *result*, leftmost first; ``tokenizers`` ranks each *pair*. So every pair that
  makes a piece becomes a merge, ranked by the piece's score.
* User-defined pieces are matched before any merging: they become (not special) added tokens.
* The checkpoint renames some user-defined pieces to control tokens (``[UNUSED_TOKEN_145]`` is ``<|im_end|>``) and adds
  more behind the vocabulary: they become added tokens under their new names, and the old names are plain text.

Decoding equals sentencepiece's for the ids of any text. Where a run of byte tokens is not valid UTF-8 (a model may
generate one), sentencepiece replaces single bytes and ``tokenizers``' ByteFallback the whole run.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

# sentencepiece's own generated module wants a newer protobuf runtime than the Triton client's other needs resolve to.
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model

SPACE = "▁"  # sentencepiece writes a space so
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # ModelProto.SentencePiece.Type
BPE = 2  # TrainerSpec.ModelType


class TokenizerExportError(ValueError):
    """The checkpoint's tokenizer files are missing, contradict each other or ask for what cannot be exported exactly."""


@dataclass(frozen=True)
class ControlToken:
    """A token that only the prompt builder and the model may use, never a user's text."""

    token_id: int
    content: str
    special: bool  # dropped when an answer is decoded


def export_tokenizer(checkpoint_dir: Path, out_file: Path) -> None:
    """Write ``tokenizer.json`` for a checkpoint.

    Args:
        checkpoint_dir: Holds ``tokenizer.model``, ``tokenizer_config.json`` and, as a rule, ``added_tokens.json``.
        out_file: Where to write; the file appears whole or not at all.

    Raises:
        TokenizerExportError: A file is missing or broken, or the model uses a feature that has no exact counterpart.
    """
    model = _read_sentencepiece(checkpoint_dir / "tokenizer.model")
    control = _read_control_tokens(checkpoint_dir, len(model.pieces))
    tokenizer = build_tokenizer(model, control)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out_file.with_name(f".{out_file.name}.{os.getpid()}")
    try:
        unfinished.write_text(tokenizer.to_str(), encoding="utf-8")
        unfinished.replace(out_file)
    finally:
        unfinished.unlink(missing_ok=True)


def build_tokenizer(model: Any, control: list[ControlToken]) -> Tokenizer:
    """Turn a sentencepiece ``ModelProto`` and the checkpoint's control tokens into a ``tokenizers.Tokenizer``."""
    _check_exportable(model)
    renamed = {token.token_id: token.content for token in control}
    pieces = [(renamed.get(i, piece.piece), piece) for i, piece in enumerate(model.pieces)]
    # sentencepiece never encodes to a piece "\0": it takes the byte token. Under a key that no merge makes it is out of
    # reach here too, and the decoder gives it its character back.
    vocab = {"\0\0" if name == "\0" else name: i for i, (name, _) in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise TokenizerExportError("two tokens of the vocabulary have the same text")
    scores = {piece.piece: piece.score for _, piece in pieces if piece.type == NORMAL and piece.piece != "\0"}

    # byte tokens cover what is not a piece, so no unknown token is needed.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=_ranked_merges(scores), byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    nul = [decoders.Replace("\0\0", "\0")] if "\0\0" in vocab else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), *nul, decoders.ByteFallback(), decoders.Fuse()])
    user_defined = [p.piece for i, (_, p) in enumerate(pieces) if p.type == USER_DEFINED and i not in renamed]
    # normalized: looked for after spaces have become SPACE, the form in which the pieces are written.
    tokenizer.add_tokens([AddedToken(piece, normalized=True, special=False) for piece in user_defined])
    for token in control:  # in the order of their ids, which new tokens get by counting on
        tokenizer.add_tokens([AddedToken(token.content, normalized=False, special=token.special)])
        if tokenizer.token_to_id(token.content) != token.token_id:
            raise TokenizerExportError(
                f"{token.content} has id {token.token_id}, but {tokenizer.token_to_id(token.content)} is the next free one"
            )
    return tokenizer


def _read_sentencepiece(path: Path) -> Any:
    model = sentencepiece_model.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise TokenizerExportError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError has no public, stable home
        raise TokenizerExportError(f"{path} is not a sentencepiece model: {error}") from error
    return model


def _check_exportable(model: Any) -> None:
    """Refuse what would silently encode to other ids."""
    spec, trainer = model.normalizer_spec, model.trainer_spec
    types = {piece.type for piece in model.pieces}
    refusals = {
        "it is not a BPE model": trainer.model_type != BPE,
        "it has no byte fallback": not trainer.byte_fallback or BYTE not in types,
        "its normaliser is not the identity": bool(spec.precompiled_charsmap) or bool(spec.normalization_rule_tsv),
        "it adds a dummy prefix": spec.add_dummy_prefix,
        "it removes extra whitespace": spec.remove_extra_whitespaces,
        "it does not escape whitespace": not spec.escape_whitespaces,
        "it treats whitespace as a suffix": trainer.treat_whitespace_as_suffix,
        "it has unused pieces": not types <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE},
        "a piece contains a bare space": any(" " in piece.piece for piece in model.pieces),
        "it denormalises": bool(model.denormalizer_spec.precompiled_charsmap),
    }
    reasons = [reason for reason, holds in refusals.items() if holds]
    if reasons:
        raise TokenizerExportError(f"tokenizer.model cannot be exported exactly: {', '.join(reasons)}")
    normal = {piece.piece for piece in model.pieces if piece.type == NORMAL}
    missing = {char for piece in normal for char in piece} - normal
    if missing:
        raise TokenizerExportError(f"tokenizer.model cannot be exported exactly: {len(missing)} characters are not pieces")


def _ranked_merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first.

    The pairs of one piece have one score in sentencepiece and different ranks here. Their order was never seen to matter
    (180 vocabularies of two and three letters, with trained and with shuffled scores, five orders, no difference).

    Args:
        scores: Score by piece, of the pieces that merging may use and make.
    """
    merges: list[tuple[str, str]] = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges.extend((left, right) for left, right in pairs if left in scores and right in scores)
    return merges


def _read_control_tokens(checkpoint_dir: Path, vocab_size: int) -> list[ControlToken]:
    """The control tokens of ``tokenizer_config.json`` and ``added_tokens.json``, sorted by id."""
    config = _read_json(checkpoint_dir / "tokenizer_config.json")
    added_file = checkpoint_dir / "added_tokens.json"
    added = _read_json(added_file) if added_file.exists() else {}
    special = set(config.get("additional_special_tokens", []))
    try:
        tokens = {int(i): (entry["content"], bool(entry["special"])) for i, entry in config["added_tokens_decoder"].items()}
        for content, token_id in added.items():
            if tokens.setdefault(int(token_id), (content, content in special))[0] != content:
                raise TokenizerExportError(
                    f"id {token_id} is {content} in added_tokens.json, {tokens[token_id][0]} in tokenizer_config.json"
                )
    except (AttributeError, KeyError, TypeError) as error:
        raise TokenizerExportError(f"tokenizer_config.json has no usable added_tokens_decoder: {error!r}") from error
    beyond = sorted(i for i in tokens if i >= vocab_size)
    if beyond != list(range(vocab_size, vocab_size + len(beyond))):
        raise TokenizerExportError(f"the added tokens' ids have gaps: {beyond} after a vocabulary of {vocab_size}")
    return [ControlToken(i, *tokens[i]) for i in sorted(tokens)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenizerExportError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise TokenizerExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise TokenizerExportError(f"{path} is not a JSON object")
    return document
