"""Encoders, encoder-decoders, models of sound, with configurations as transformers saves them."""

from __future__ import annotations

from typing import Any

from tests.families.family import (
    Family,
    Run,
    Stack,
    encoder,
    encoder_decoder,
    pixels,
    sound,
    tokens,
)


def whisper_run(model: Any) -> Any:
    features = pixels(1, 80, 128)
    return model(input_features=features, decoder_input_ids=tokens(6), use_cache=False)


def one(name: str, cls: str, path: str, run: Run = encoder, **sizes: Any) -> Family:
    """An encoder."""
    return Family(name, cls, run, (Stack(path),), sizes)


def two(
    name: str,
    cls: str,
    encoder_path: str,
    decoder_path: str,
    run: Run = encoder_decoder,
    **sizes: Any,
) -> Family:
    """An encoder and a decoder, either of which is stacked."""
    stacks = (
        Stack(encoder_path, module="encoder", root=encoder_path.rpartition(".")[0]),
        Stack(decoder_path, module="decoder", from_last=("final_logits_bias",)),
    )
    return Family(name, cls, run, stacks, sizes)


MODEL = ("model.encoder.layers", "model.decoder.layers")
BLOCKS = ("encoder.block", "decoder.block")
CONVOLUTIONS = {
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}

ENCODERS = (
    one("bert", "BertForMaskedLM", "bert.encoder.layer"),
    one("bert, headless", "BertModel", "encoder.layer"),
    one("bert, classifier", "BertForSequenceClassification", "bert.encoder.layer"),
    one("roberta", "RobertaForMaskedLM", "roberta.encoder.layer"),
    one("xlm_roberta", "XLMRobertaForMaskedLM", "roberta.encoder.layer"),
    one("distilbert", "DistilBertForMaskedLM", "distilbert.transformer.layer"),
    one("electra", "ElectraForMaskedLM", "electra.encoder.layer", embedding_size=16),
    Family(
        "albert",
        "AlbertForMaskedLM",
        encoder,
        (Stack("albert.encoder.albert_layer_groups", refused="no stack of layers"),),
        {"embedding_size": 16},
    ),
    one("deberta_v2", "DebertaV2ForMaskedLM", "deberta.encoder.layer"),
    one("modernbert", "ModernBertForMaskedLM", "model.layers"),
    one("longformer", "LongformerForMaskedLM", "longformer.encoder.layer"),
    one("mpnet", "MPNetForMaskedLM", "mpnet.encoder.layer"),
    Family("esm", "EsmForMaskedLM", encoder, (Stack("esm.encoder.layer", refused="contact_head"),)),
    one("nomic_bert", "NomicBertModel", "layers"),
    one("fnet", "FNetForMaskedLM", "fnet.encoder.layer"),
    two("t5", "T5ForConditionalGeneration", *BLOCKS),
    two("mt5", "MT5ForConditionalGeneration", *BLOCKS),
    two("umt5", "UMT5ForConditionalGeneration", *BLOCKS),
    two("longt5", "LongT5ForConditionalGeneration", *BLOCKS),
    two("bart", "BartForConditionalGeneration", *MODEL),
    two("mbart", "MBartForConditionalGeneration", *MODEL),
    two("marian", "MarianMTModel", *MODEL),
    two("pegasus", "PegasusForConditionalGeneration", *MODEL),
    two("m2m100", "M2M100ForConditionalGeneration", *MODEL),
    two("blenderbot", "BlenderbotForConditionalGeneration", *MODEL),
    two(
        "prophetnet",
        "ProphetNetForConditionalGeneration",
        "prophetnet.encoder.layers",
        "prophetnet.decoder.layers",
        num_encoder_attention_heads=2,
        num_decoder_attention_heads=2,
    ),
    two("whisper", "WhisperForConditionalGeneration", *MODEL, run=whisper_run),
    one("wav2vec2", "Wav2Vec2ForCTC", "wav2vec2.encoder.layers", sound, **CONVOLUTIONS),
    one("hubert", "HubertForCTC", "hubert.encoder.layers", sound, **CONVOLUTIONS),
    one("wavlm", "WavLMModel", "encoder.layers", sound, **CONVOLUTIONS),
)
