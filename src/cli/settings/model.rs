//! What learns: the flags that shape a model.

use super::Check;
use crate::error::{Error, Result};
use crate::model::config::{LAYER_NORM_EPS, activation_name, activation_of};
use crate::model::gpt::attention_variants;
use crate::model::{DropoutRates, GptConfig, HeadMerge, HeadMerging, PRESETS, Positions};
use crate::ops::linear_attention::FeatureMap;
use crate::ops::reweight_heads::{NormScope, NormWeight};
use crate::ops::softmax_attention;
use clap::builder::PossibleValuesParser;

/// Flags of the model.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ModelArgs {
    /// Size of the model [default: gpt-nano]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PRESETS.map(|p| p.name)))]
    pub preset: Option<String>,
    /// Blocks [default: the preset's]
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
    /// Attention heads a block; they divide the width [default: the preset's]
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Width of the model [default: the preset's]
    #[arg(long, value_name = "N")]
    pub width: Option<usize>,
    /// Attention variant, or a list of one a layer, such as softmax-attention,linear-attention,softmax-attention
    /// [default: softmax-attention]
    #[arg(long, value_name = "VARIANT", value_delimiter = ',')]
    #[arg(value_parser = PossibleValuesParser::new(attention_variants()))]
    pub attention: Option<Vec<String>>,
    /// Feature map of linear attention [default: elu1]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(FeatureMap::ALL.map(|m| m.name())))]
    pub feature_map: Option<String>,
    /// How the model knows where a token stands [default: learned]
    #[arg(long, value_name = "KIND", value_enum)]
    pub positions: Option<Positions>,
    /// Use the token embedding as the head's weight, without weight decay [default: a weight of its own]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub tie_weights: Option<bool>,
    /// How the outputs of a layer's heads become one vector [default: concat]
    #[arg(long, value_name = "WAY", value_enum)]
    pub head_merge: Option<HeadMerge>,
    /// With --head-merge shuffle: draw a new order in each training step. A fixed order equals concat with other
    /// initial weights [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub shuffle_each_forward: Option<bool>,
    /// With --head-merge shuffle: what decides the fixed order, and the order in evaluation [default: 1]
    #[arg(long, value_name = "N")]
    pub shuffle_seed: Option<u64>,
    /// With --head-merge reweight: over which rows a head's norm goes. With `batch`, a sentence's loss depends on its
    /// batch; with `batch` and `sequence`, later tokens leak into earlier predictions [default: prefix]
    #[arg(long, value_name = "SCOPE", value_enum)]
    pub norm_scope: Option<NormScope>,
    /// With --head-merge reweight: a head's weight is its norm, or that divided by the mean of the heads' norms
    /// [default: raw]
    #[arg(long, value_name = "KIND", value_enum)]
    pub norm_weight: Option<NormWeight>,
    /// Dropout probability, after the embedding, at the end of each branch of a block, and of attention weights
    /// [default: 0.1]
    #[arg(long, value_name = "X")]
    pub dropout: Option<f64>,
    /// Dropout probability of softmax attention's weights; linear and mean-similarity attention form none
    /// [default: as --dropout, as minGPT has it]
    #[arg(long, value_name = "X")]
    pub attention_dropout: Option<f64>,
}

/// A model's shape.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ModelSettings {
    /// Name of the model's size.
    pub preset: String,
    /// Blocks, where not the preset's.
    #[serde(default)]
    pub layers: Option<usize>,
    /// Heads, where not the preset's.
    #[serde(default)]
    pub heads: Option<usize>,
    /// Width, where not the preset's.
    #[serde(default)]
    pub width: Option<usize>,
    /// Names of attention variants, separated by commas: one for all layers, or one a layer.
    pub attention: String,
    /// Name of linear attention's feature map.
    #[serde(default = "default_feature_map")]
    pub feature_map: String,
    /// How the model knows where a token stands.
    #[serde(default)]
    pub positions: Positions,
    /// Whether the head's weight is the token embedding.
    #[serde(default)]
    pub tie_weights: bool,
    /// How heads are merged.
    #[serde(flatten, default)]
    pub head_merging: HeadMerging,
    /// Width within a block's MLP, where not 4 times the model's: of weights that others made.
    #[serde(default)]
    pub inner: Option<usize>,
    /// What the MLP applies within, by transformers' name, likewise.
    #[serde(default = "default_activation")]
    pub activation_function: String,
    /// What LayerNorm adds to the variance, likewise.
    #[serde(default = "default_eps")]
    pub layer_norm_epsilon: f64,
    /// Dropout probability.
    pub dropout: f64,
    /// Dropout probability of attention weights; `None`: as `dropout`. Runs from before there was a choice dropped none.
    #[serde(default = "no_attention_dropout")]
    pub attention_dropout: Option<f64>,
}

fn default_feature_map() -> String {
    FeatureMap::default().name().into()
}

fn default_activation() -> String {
    activation_name(GptConfig::default().activation).into()
}

fn default_eps() -> f64 {
    LAYER_NORM_EPS
}

fn no_attention_dropout() -> Option<f64> {
    Some(0.0)
}

impl Default for ModelSettings {
    fn default() -> Self {
        ModelSettings {
            preset: PRESETS[0].name.into(),
            layers: None,
            heads: None,
            width: None,
            attention: softmax_attention::ENTRY.name.into(),
            feature_map: default_feature_map(),
            positions: Positions::default(),
            tie_weights: false,
            head_merging: HeadMerging::default(),
            inner: None,
            activation_function: default_activation(),
            layer_norm_epsilon: default_eps(),
            dropout: 0.1,
            attention_dropout: None,
        }
    }
}

impl ModelArgs {
    /// The settings that describe a model whose weights a run starts from; its size, unless --preset gives another.
    pub fn base(&self, config: &GptConfig) -> ModelSettings {
        let size = |n: usize| self.preset.is_none().then_some(n);
        ModelSettings {
            layers: size(config.layers),
            heads: size(config.heads),
            width: size(config.width),
            attention: config.attention.join(","),
            feature_map: config.feature_map.name().into(),
            positions: config.positions,
            tie_weights: config.tied,
            head_merging: config.head_merging,
            inner: config.inner,
            activation_function: activation_name(config.activation).into(),
            layer_norm_epsilon: config.layer_norm_eps,
            ..Default::default()
        }
    }

    /// What the flags say, and where they say nothing, `base`.
    pub fn over(&self, base: ModelSettings) -> ModelSettings {
        let merging = base.head_merging;
        ModelSettings {
            preset: self.preset.clone().unwrap_or(base.preset),
            layers: self.layers.or(base.layers),
            heads: self.heads.or(base.heads),
            width: self.width.or(base.width),
            attention: self.attention.as_ref().map_or(base.attention, |names| names.join(",")),
            feature_map: self.feature_map.clone().unwrap_or(base.feature_map),
            positions: self.positions.unwrap_or(base.positions),
            tie_weights: self.tie_weights.unwrap_or(base.tie_weights),
            head_merging: HeadMerging {
                merge: self.head_merge.unwrap_or(merging.merge),
                shuffle_each_forward: self.shuffle_each_forward.unwrap_or(merging.shuffle_each_forward),
                shuffle_seed: self.shuffle_seed.unwrap_or(merging.shuffle_seed),
                norm_scope: self.norm_scope.unwrap_or(merging.norm_scope),
                norm_weight: self.norm_weight.unwrap_or(merging.norm_weight),
            },
            inner: base.inner,
            activation_function: base.activation_function,
            layer_norm_epsilon: base.layer_norm_epsilon,
            dropout: self.dropout.unwrap_or(base.dropout),
            attention_dropout: self.attention_dropout.or(base.attention_dropout),
        }
    }
}

impl ModelSettings {
    /// Values that must lie in a range.
    pub fn checks(&self) -> Vec<Check> {
        let attention = self.attention_dropout.map(|p| Check::below_one("attention-dropout", p));
        [Check::below_one("dropout", self.dropout)].into_iter().chain(attention).collect()
    }

    /// What is dropped in training.
    pub fn dropout_rates(&self) -> DropoutRates {
        let attention = self.attention_dropout.unwrap_or(self.dropout);
        DropoutRates { attention, ..self.dropout.into() }
    }

    /// The model that they describe, for blocks and a vocabulary of these sizes.
    ///
    /// # Errors
    /// If a name is unknown, as in a `training.json` that was edited; or if weights' dropout is asked for where no layer has
    /// weights.
    pub fn config(&self, block: usize, vocabulary: usize) -> Result<GptConfig> {
        let Some(preset) = PRESETS.iter().find(|p| p.name == self.preset) else {
            let names = PRESETS.map(|p| p.name).join(", ");
            let what = format!("--preset {}", self.preset);
            return Err(Error::argument(what, "is no preset", format!("give one of {names}")));
        };
        let attention: Vec<String> = self.attention.split(',').map(String::from).collect();
        let softmax = softmax_attention::ENTRY.name;
        if let Some(p) = self.attention_dropout.filter(|&p| p > 0.0)
            && !attention.iter().any(|name| name == softmax)
        {
            let problem = "is for weights, which no layer of this --attention forms";
            let remedy = format!("leave it out, or add a layer of {softmax}");
            return Err(Error::argument(format!("--attention-dropout {p}"), problem, remedy));
        }
        Ok(GptConfig {
            layers: self.layers.unwrap_or(preset.layers),
            heads: self.heads.unwrap_or(preset.heads),
            width: self.width.unwrap_or(preset.width),
            block,
            vocabulary,
            attention,
            feature_map: self.feature_map.parse()?,
            positions: self.positions,
            head_merging: self.head_merging,
            tied: self.tie_weights,
            inner: self.inner,
            activation: activation_of(&self.activation_function).ok_or_else(|| {
                let what = format!("activation_function {}", self.activation_function);
                Error::argument(what, "is not known", "restore training.json")
            })?,
            layer_norm_eps: self.layer_norm_epsilon,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_before_are_what_they_were() {
        let old = r#"{ "preset": "gpt-micro", "attention": "linear-attention", "dropout": 0.2 }"#;
        let settings: ModelSettings = serde_json::from_str(old).unwrap();
        let expected = ModelSettings {
            preset: "gpt-micro".into(),
            attention: "linear-attention".into(),
            dropout: 0.2,
            attention_dropout: Some(0.0),
            ..Default::default()
        };
        assert_eq!(settings, expected);
        assert_eq!(settings.dropout_rates().attention, 0.0);
        assert_eq!(ModelSettings::default().dropout_rates(), 0.1.into());
    }

    #[test]
    fn settings_are_kept_as_they_are() {
        let args = ModelArgs {
            layers: Some(2),
            attention: Some(vec!["softmax-attention".into(), "linear-attention".into()]),
            positions: Some(Positions::SinusoidalPaired),
            head_merge: Some(HeadMerge::Reweight),
            norm_scope: Some(NormScope::Batch),
            ..Default::default()
        };
        let settings = args.over(ModelSettings::default());
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<ModelSettings>(&text).unwrap(), settings);
        let config = settings.config(8, 5).unwrap();
        assert_eq!((config.layers, config.width, config.attention_of(1)), (2, 48, "linear-attention"));
        assert_eq!(config.head_merging.norm_scope, NormScope::Batch);
    }

    #[test]
    fn a_model_of_given_weights_is_described_by_its_settings() {
        let config = GptConfig {
            layers: 2,
            width: 12,
            tied: true,
            inner: Some(20),
            activation: crate::ops::linear::Activation::Relu,
            layer_norm_eps: 1e-6,
            positions: Positions::Rotary,
            ..Default::default()
        };
        let args = ModelArgs::default();
        assert_eq!(args.over(args.base(&config)).config(1024, 50_257).unwrap(), config);
        let sized = ModelArgs { preset: Some("gpt-mini".into()), ..Default::default() };
        assert_eq!(sized.over(sized.base(&config)).config(8, 9).unwrap().width, 192);
    }

    #[test]
    fn dropping_weights_needs_weights() {
        let linear = ModelSettings { attention: "linear-attention".into(), ..Default::default() };
        assert!(linear.config(8, 5).is_ok());
        let dropping = ModelSettings { attention_dropout: Some(0.1), ..linear };
        assert!(dropping.config(8, 5).unwrap_err().to_string().starts_with("--attention-dropout 0.1: is for weights"));
    }
}
