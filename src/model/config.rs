//! All that decides a model's function, and `config.json`: Hugging Face's where transformers computes the same function
//! from it, our own otherwise.

use super::gpt::{INITIAL_DEVIATION, PRESETS, Preset, attention_variants};
use super::options::{DropoutRates, HeadMerge, HeadMerging, Positions};
use crate::error::{Error, Result};
use crate::ops::linear::Activation;
use crate::ops::linear_attention::{self, FeatureMap};
use crate::ops::softmax_attention;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

/// Added to the variance in every LayerNorm, unless said otherwise.
pub const LAYER_NORM_EPS: f64 = 1e-5;
/// The model type of everything that transformers has no code for, so that nothing loads it wrongly in silence.
const OWN_TYPE: &str = "attn-engine";

/// All that decides a model's function and parameters' shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct GptConfig {
    /// Blocks.
    pub layers: usize,
    /// Attention heads a block; divides the width.
    pub heads: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Tokens that the model sees at once.
    pub block: usize,
    /// Different tokens.
    pub vocabulary: usize,
    /// Names of attention variants in the registry: one for all layers, or one a layer.
    pub attention: Vec<String>,
    /// φ of linear attention.
    pub feature_map: FeatureMap,
    /// How the model knows where a token stands.
    pub positions: Positions,
    /// How the outputs of heads become one vector.
    pub head_merging: HeadMerging,
    /// Whether the head's weight is the token embedding.
    pub tied: bool,
    /// Width within a block's MLP; `None`: 4 times the model's.
    pub inner: Option<usize>,
    /// What the MLP applies within.
    pub activation: Activation,
    /// Added to the variance in every LayerNorm.
    pub layer_norm_eps: f64,
}

impl Default for GptConfig {
    /// GPT-2 as minGPT has it, of size gpt-nano, with GPT-2's block and vocabulary.
    fn default() -> Self {
        let Preset { layers, heads, width, .. } = PRESETS[0];
        GptConfig {
            layers,
            heads,
            width,
            block: 1024,
            vocabulary: 50_257,
            attention: vec![softmax_attention::ENTRY.name.into()],
            feature_map: FeatureMap::default(),
            positions: Positions::default(),
            head_merging: HeadMerging::default(),
            tied: false,
            inner: None,
            activation: Activation::GeluTanh,
            layer_norm_eps: LAYER_NORM_EPS,
        }
    }
}

impl GptConfig {
    /// The attention variant of a layer.
    pub fn attention_of(&self, layer: usize) -> &str {
        &self.attention[layer % self.attention.len().max(1)]
    }

    /// Width within a block's MLP.
    pub fn inner_width(&self) -> usize {
        self.inner.unwrap_or(4 * self.width)
    }

    /// The same model with heads merged another way: at inference, [`HeadMerge::Concat`] turns a weighting off.
    pub fn with_head_merge(mut self, merge: HeadMerge) -> GptConfig {
        self.head_merging = match merge {
            HeadMerge::Shuffle | HeadMerge::Reweight if merge == self.head_merging.merge => self.head_merging,
            _ => HeadMerging { merge, ..Default::default() },
        };
        self
    }
    /// An error where the attention variants, or what is asked of them, cannot be.
    ///
    /// # Errors
    /// Naming the flag.
    pub fn check_attention(&self) -> Result<()> {
        let given = self.attention.join(",");
        if ![1, self.layers].contains(&self.attention.len()) {
            let (n, layers) = (self.attention.len(), self.layers);
            let problem = format!("names {n} variants for {layers} layers");
            return Err(Error::argument(format!("--attention {given}"), problem, "give one for all, or one a layer"));
        }
        let variants = attention_variants();
        if let Some(unknown) = self.attention.iter().find(|name| !variants.contains(&name.as_str())) {
            let remedy = format!("give {}, or a list of one a layer", variants.join(", "));
            return Err(Error::argument(format!("--attention {unknown}"), "is no attention variant", remedy));
        }
        let softmax = softmax_attention::ENTRY.name;
        if self.positions == Positions::Alibi
            && let Some(other) = self.attention.iter().find(|name| *name != softmax)
        {
            let problem = format!("changes scores, which {other} has none of");
            let remedy = format!("use --attention {softmax}, or other --positions");
            return Err(Error::argument("--positions alibi", problem, remedy));
        }
        let head_dim = self.width / self.heads;
        if self.positions == Positions::Rotary && !head_dim.is_multiple_of(2) {
            let problem = format!("turns pairs of columns, and a head has {head_dim}");
            return Err(Error::argument(
                "--positions rotary",
                problem,
                "give a --width that is an even multiple of --heads",
            ));
        }
        let linear = linear_attention::ENTRY.name;
        if self.feature_map != FeatureMap::default() && !self.attention.iter().any(|name| name == linear) {
            let (what, remedy) = (format!("--feature-map {}", self.feature_map), format!("add --attention {linear}"));
            return Err(Error::argument(what, "is for linear attention, of which there is none", remedy));
        }
        Ok(())
    }
}

/// transformers' names of what the MLP applies; the first of each is what we write.
const ACTIVATIONS: [(&str, Activation); 6] = [
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu", Activation::GeluErf),
    ("gelu_python", Activation::GeluErf),
    ("relu", Activation::Relu),
];

/// transformers' name of an activation.
pub fn activation_name(activation: Activation) -> &'static str {
    ACTIVATIONS.iter().find(|(_, a)| *a == activation).expect("every activation has a name").0
}

/// The activation of this name in transformers.
pub fn activation_of(name: &str) -> Option<Activation> {
    ACTIVATIONS.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation)
}

/// Fields whose other values change the logits in ways that are not built in, and the value that does not. Absent fields
/// have it.
const FIXED: [(&str, Value, &str); 3] = [
    ("scale_attn_weights", Value::Bool(true), "true"),
    ("scale_attn_by_inverse_layer_idx", Value::Bool(false), "false"),
    ("add_cross_attention", Value::Bool(false), "false"),
];

/// Fields that must not be there, or be null or empty: they change weights or structure.
const ABSENT: [&str; 2] = ["quantization_config", "pruned_heads"];

/// Fields that are read, or that say what is said elsewhere, or that matter to training by other programs alone.
const KNOWN: [&str; 27] = [
    "model_type",
    "architectures",
    "n_layer",
    "n_head",
    "n_embd",
    "n_inner",
    "n_positions",
    "n_ctx",
    "vocab_size",
    "activation_function",
    "layer_norm_epsilon",
    "initializer_range",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
    "reorder_and_upcast_attn",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "attention",
    "feature_map",
    "positions",
];

/// What `config.json` says of a model.
struct File<'a> {
    path: &'a Path,
    json: Value,
}

impl File<'_> {
    fn unlike(&self, key: &str, expected: &str) -> Error {
        let problem = format!("`{key}` is {}, expected {expected}", self.json[key]);
        Error::file(self.path, problem, "give a checkpoint of `attn train lm`, or a GPT-2 of this kind")
    }

    fn size(&self, key: &str) -> Result<usize> {
        let size = self.json[key].as_u64().filter(|&n| n > 0).map(|n| n as usize);
        size.ok_or_else(|| self.unlike(key, "a size above 0"))
    }

    /// A field that may be absent or null, then `None`.
    fn optional<T: serde::de::DeserializeOwned>(&self, key: &str, expected: &str) -> Result<Option<T>> {
        match &self.json[key] {
            Value::Null => Ok(None),
            value => serde_json::from_value(value.clone()).map(Some).map_err(|_| self.unlike(key, expected)),
        }
    }

    fn activation(&self) -> Result<Activation> {
        let name: Option<String> = self.optional("activation_function", "a name")?;
        let name = name.as_deref().unwrap_or(ACTIVATIONS[0].0);
        let expected = format!("one of {}", ACTIVATIONS.map(|(name, _)| name).join(", "));
        activation_of(name).ok_or_else(|| self.unlike("activation_function", &expected))
    }

    /// An error at a field that cannot be honoured; those that mean nothing here are named on stderr.
    fn check_others(&self) -> Result<()> {
        for (key, allowed, expected) in &FIXED {
            if self.json.get(key).is_some_and(|v| v != allowed) {
                return Err(self.unlike(key, expected));
            }
        }
        for key in ABSENT {
            let nothing = |v: &Value| v.is_null() || v.as_object().is_some_and(|o| o.is_empty());
            if !self.json.get(key).is_none_or(nothing) {
                return Err(self.unlike(key, "none"));
            }
        }
        let merging = serde_json::to_value(HeadMerging::default()).expect("plain data");
        let ours = |key: &str| KNOWN.contains(&key) || merging.get(key).is_some();
        let fixed = |key: &str| FIXED.iter().any(|(k, ..)| *k == key) || ABSENT.contains(&key);
        let all = self.json.as_object().into_iter().flat_map(|o| o.keys());
        let ignored: Vec<&str> = all.map(String::as_str).filter(|key| !ours(key) && !fixed(key)).collect();
        static NAMED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        let note = format!("{}: ignored, as it means nothing here: {}", self.path.display(), ignored.join(", "));
        if !ignored.is_empty() && NAMED.lock().is_ok_and(|mut named| named.insert(note.clone())) {
            eprintln!("{note}");
        }
        Ok(())
    }
}

impl GptConfig {
    /// Whether transformers' GPT-2 computes the same function.
    pub fn is_gpt2(&self) -> bool {
        self.positions == Positions::Learned
            && self.head_merging.merge == HeadMerge::Concat
            && self.attention.iter().all(|name| name == softmax_attention::ENTRY.name)
    }

    /// What `config.json` holds.
    pub fn to_json(&self, dropout: impl Into<DropoutRates>) -> Value {
        let DropoutRates { embedding, residual, attention } = dropout.into();
        let mut json = json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_embd": self.width,
            "n_inner": self.inner,
            "n_positions": self.block,
            "n_ctx": self.block,
            "vocab_size": self.vocabulary,
            "activation_function": activation_name(self.activation),
            "layer_norm_epsilon": self.layer_norm_eps,
            "initializer_range": INITIAL_DEVIATION,
            "embd_pdrop": embedding,
            "resid_pdrop": residual,
            "attn_pdrop": attention,
            "scale_attn_weights": true,
            "scale_attn_by_inverse_layer_idx": false,
            "reorder_and_upcast_attn": false,
            "tie_word_embeddings": self.tied,
            "bos_token_id": null,
            "eos_token_id": null,
            "use_cache": true,
            "torch_dtype": "float32",
        });
        if !self.is_gpt2() {
            json["model_type"] = OWN_TYPE.into();
            json["architectures"] = json!([]);
            json["attention"] = json!(self.attention);
            json["feature_map"] = self.feature_map.name().into();
            json["positions"] = json!(self.positions);
            let Value::Object(merging) = json!(self.head_merging) else { unreachable!("a struct") };
            json.as_object_mut().expect("an object").extend(merging);
        }
        json
    }

    /// Reads a `config.json` of ours, or of a GPT-2 that we compute alike. Fields that mean nothing here are named on
    /// stderr, once.
    ///
    /// # Errors
    /// If the file cannot be read, a key is missing, or the model is another one; the key is named.
    pub fn read(path: &Path) -> Result<GptConfig> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::file(path, format!("cannot be read: {e}"), "give a checkpoint directory that holds it")
        })?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("is not JSON: {e}"), "restore the checkpoint"))?;
        let file = File { path, json };
        let own = match file.json["model_type"].as_str() {
            Some("gpt2") => false,
            Some(OWN_TYPE) => true,
            _ => return Err(file.unlike("model_type", "\"gpt2\" or \"attn-engine\"")),
        };
        file.check_others()?;
        let mut config = GptConfig {
            layers: file.size("n_layer")?,
            heads: file.size("n_head")?,
            width: file.size("n_embd")?,
            block: file.size("n_positions")?,
            vocabulary: file.size("vocab_size")?,
            // Absent fields have transformers' defaults; tying is on by default there.
            tied: file.optional("tie_word_embeddings", "true or false")?.unwrap_or(true),
            inner: file.optional("n_inner", "a size or null")?,
            activation: file.activation()?,
            layer_norm_eps: file.optional("layer_norm_epsilon", "a number")?.unwrap_or(LAYER_NORM_EPS),
            ..Default::default()
        };
        if own {
            config.read_own(&file)?;
        }
        Ok(config)
    }

    fn read_own(&mut self, file: &File) -> Result<()> {
        self.attention = match &file.json["attention"] {
            // As before each layer could have its own.
            Value::String(name) => vec![name.clone()],
            _ => file.optional("attention", "names of variants")?.ok_or_else(|| file.unlike("attention", "names"))?,
        };
        if let Some(name) = file.optional::<String>("feature_map", "a name")? {
            let expected = FeatureMap::ALL.map(|m| m.name()).join(" or ");
            self.feature_map = name.parse().map_err(|_| file.unlike("feature_map", &expected))?;
        }
        self.positions = file.optional("positions", "a kind of positions")?.unwrap_or_default();
        let plain = HeadMerging::default();
        self.head_merging = HeadMerging {
            merge: file.optional("head_merge", "a way of merging heads")?.unwrap_or(plain.merge),
            shuffle_each_forward: file.optional("shuffle_each_forward", "true or false")?.unwrap_or_default(),
            shuffle_seed: file.optional("shuffle_seed", "an integer")?.unwrap_or(plain.shuffle_seed),
            norm_scope: file.optional("norm_scope", "prefix, sequence or batch")?.unwrap_or_default(),
            norm_weight: file.optional("norm_weight", "raw or relative")?.unwrap_or_default(),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reweight_heads::NormScope;

    fn written(json: &Value) -> Result<GptConfig> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, json.to_string()).unwrap();
        GptConfig::read(&path)
    }

    fn round_trip(config: GptConfig) -> Value {
        let json = config.to_json(0.1);
        assert_eq!(written(&json).unwrap(), config);
        json
    }

    #[test]
    fn gpt2_only_where_transformers_computes_the_same() {
        let plain = GptConfig { block: 128, vocabulary: 65, ..Default::default() };
        let alike = GptConfig {
            tied: true,
            inner: Some(100),
            activation: Activation::GeluErf,
            layer_norm_eps: 1e-6,
            ..plain.clone()
        };
        let hybrid = ["softmax-attention", "linear-attention", "softmax-attention"].map(String::from).to_vec();
        let merging = HeadMerging { merge: HeadMerge::Reweight, norm_scope: NormScope::Batch, ..Default::default() };
        for (config, kind) in [
            (plain.clone(), "gpt2"),
            (alike, "gpt2"),
            (GptConfig { positions: Positions::SinusoidalPaired, ..plain.clone() }, OWN_TYPE),
            (GptConfig { attention: hybrid, feature_map: FeatureMap::Relu, ..plain.clone() }, OWN_TYPE),
            (GptConfig { head_merging: merging, ..plain }, OWN_TYPE),
        ] {
            assert_eq!(round_trip(config)["model_type"], kind);
        }
    }

    #[test]
    fn what_changes_the_logits_and_cannot_be_had_is_an_error() {
        let gpt2 = GptConfig::default().to_json(0.0);
        for (key, value) in [
            ("activation_function", json!("silu")),
            ("scale_attn_by_inverse_layer_idx", json!(true)),
            ("scale_attn_weights", json!(false)),
            ("quantization_config", json!({ "bits": 4 })),
            ("n_inner", json!("wide")),
            ("n_layer", json!(0)),
            ("model_type", json!("gptj")),
        ] {
            let mut json = gpt2.clone();
            json[key] = value;
            let error = written(&json).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` is ")), "{error}");
        }
        let mut json = gpt2;
        json["summary_type"] = "cls_index".into();
        json["activation_function"] = "gelu_pytorch_tanh".into();
        assert_eq!(written(&json).unwrap(), GptConfig::default());
    }

    #[test]
    fn an_old_checkpoint_names_one_variant() {
        let mut json = GptConfig { positions: Positions::None, ..Default::default() }.to_json(0.0);
        let object = json.as_object_mut().unwrap();
        object.retain(|key, _| !["positions", "head_merge", "feature_map", "norm_scope"].contains(&key.as_str()));
        json["attention"] = "linear-attention".into();
        let expected = GptConfig { attention: vec!["linear-attention".into()], ..Default::default() };
        assert_eq!(written(&json).unwrap(), expected);
    }
}
