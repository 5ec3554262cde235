//! `config.json`: Hugging Face's where transformers computes the same function from it, our own otherwise.

use super::gpt::{GptConfig, INITIAL_DEVIATION, LAYER_NORM_EPS};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// The attention that transformers' GPT-2 computes.
const GPT2_ATTENTION: &str = "softmax-attention";
/// The model type of everything that transformers has no code for, so that nothing loads it wrongly in silence.
const OWN_TYPE: &str = "attn-engine";

impl GptConfig {
    /// What `config.json` holds.
    pub fn to_json(&self, dropout: f64) -> Value {
        let mut json = json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_embd": self.width,
            "n_inner": null,
            "n_positions": self.block,
            "n_ctx": self.block,
            "vocab_size": self.vocabulary,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": LAYER_NORM_EPS,
            "initializer_range": INITIAL_DEVIATION,
            "embd_pdrop": dropout,
            "resid_pdrop": dropout,
            "attn_pdrop": 0.0,
            "scale_attn_weights": true,
            "scale_attn_by_inverse_layer_idx": false,
            "reorder_and_upcast_attn": false,
            "tie_word_embeddings": false,
            "bos_token_id": null,
            "eos_token_id": null,
            "use_cache": true,
            "torch_dtype": "float32",
        });
        if self.attention != GPT2_ATTENTION {
            json["model_type"] = OWN_TYPE.into();
            json["architectures"] = json!([]);
            json["attention"] = self.attention.as_str().into();
        }
        json
    }

    /// Reads a `config.json` of ours, or of a GPT-2 that we compute alike. Also says whether the head is the token
    /// embedding (tied).
    ///
    /// # Errors
    /// If the file cannot be read, a key is missing, or the model is another one; the key is named.
    pub fn read(path: &Path) -> Result<(GptConfig, bool)> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::file(path, format!("cannot be read: {e}"), "give a checkpoint directory that holds it")
        })?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("is not JSON: {e}"), "restore the checkpoint"))?;
        let unlike = |key: &str, expected: &str| {
            let problem = format!("`{key}` is {}, expected {expected}", json[key]);
            Error::file(path, problem, "give a checkpoint of `attn train lm`, or a GPT-2 of this kind")
        };
        let size = |key: &str| {
            json[key].as_u64().filter(|&n| n > 0).map(|n| n as usize).ok_or_else(|| unlike(key, "a size above 0"))
        };
        let (layers, heads, width) = (size("n_layer")?, size("n_head")?, size("n_embd")?);
        let attention = match json["model_type"].as_str() {
            Some("gpt2") => GPT2_ATTENTION.to_string(),
            Some(OWN_TYPE) => json["attention"].as_str().ok_or_else(|| unlike("attention", "a name"))?.to_string(),
            _ => return Err(unlike("model_type", "\"gpt2\" or \"attn-engine\"")),
        };
        // What is absent has transformers' default, with which all of these agree; tying is on by default there.
        let agrees = |key: &str, allowed: &[Value]| json.get(key).is_none_or(|v| allowed.contains(v));
        for (key, allowed, expected) in [
            ("activation_function", vec!["gelu_new".into(), "gelu_pytorch_tanh".into()], "\"gelu_new\""),
            ("layer_norm_epsilon", vec![LAYER_NORM_EPS.into()], "1e-5"),
            ("n_inner", vec![Value::Null, (4 * width).into()], "4 * n_embd"),
            ("scale_attn_weights", vec![true.into()], "true"),
            ("scale_attn_by_inverse_layer_idx", vec![false.into()], "false"),
        ] {
            if !agrees(key, &allowed) {
                return Err(unlike(key, expected));
            }
        }
        let tied = json["tie_word_embeddings"].as_bool().unwrap_or(true);
        let (block, vocabulary) = (size("n_positions")?, size("vocab_size")?);
        Ok((GptConfig { layers, heads, width, block, vocabulary, attention }, tied))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(attention: &str) -> (Value, GptConfig) {
        let attention = attention.to_string();
        let config = GptConfig { layers: 3, heads: 3, width: 48, block: 128, vocabulary: 65, attention };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let json = config.to_json(0.1);
        std::fs::write(&path, json.to_string()).unwrap();
        assert_eq!(GptConfig::read(&path).unwrap(), (config.clone(), false));
        std::fs::write(&path, json.to_string().replace("gelu_new", "relu")).unwrap();
        assert!(GptConfig::read(&path).unwrap_err().to_string().contains("`activation_function` is \"relu\""));
        (json, config)
    }

    #[test]
    fn gpt2_only_where_transformers_computes_the_same() {
        assert_eq!(round_trip("softmax-attention").0["model_type"], "gpt2");
        assert_eq!(round_trip("linear-attention").0["model_type"], "attn-engine");
    }
}
