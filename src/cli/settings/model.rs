//! What learns: the flags that shape a model.

use super::Check;
use crate::error::{Error, Result};
use crate::model::gpt::attention_variants;
use crate::model::{GptConfig, PRESETS};
use clap::builder::PossibleValuesParser;

/// Flags of the model.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ModelArgs {
    /// Size of the model [default: gpt-nano]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PRESETS.map(|p| p.name)))]
    pub preset: Option<String>,
    /// Attention variant [default: softmax-attention]
    #[arg(long, value_name = "VARIANT", value_parser = PossibleValuesParser::new(attention_variants()))]
    pub attention: Option<String>,
    /// Dropout probability, after the embedding and at the end of each branch of a block; attention weights are not
    /// dropped [default: 0.1]
    #[arg(long, value_name = "X")]
    pub dropout: Option<f64>,
}

/// A model's shape.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ModelSettings {
    /// Name of the model's size.
    pub preset: String,
    /// Name of the attention variant.
    pub attention: String,
    /// Dropout probability.
    pub dropout: f64,
}

impl Default for ModelSettings {
    fn default() -> Self {
        ModelSettings { preset: PRESETS[0].name.into(), attention: "softmax-attention".into(), dropout: 0.1 }
    }
}

impl ModelArgs {
    /// What the flags say, and where they say nothing, `base`.
    pub fn over(&self, base: ModelSettings) -> ModelSettings {
        ModelSettings {
            preset: self.preset.clone().unwrap_or(base.preset),
            attention: self.attention.clone().unwrap_or(base.attention),
            dropout: self.dropout.unwrap_or(base.dropout),
        }
    }
}

impl ModelSettings {
    /// Values that must lie in a range.
    pub fn checks(&self) -> Vec<Check> {
        vec![Check::below_one("dropout", self.dropout)]
    }

    /// The model that they describe, for blocks and a vocabulary of these sizes.
    ///
    /// # Errors
    /// If the preset's name is unknown, as in a `training.json` that was edited.
    pub fn config(&self, block: usize, vocabulary: usize) -> Result<GptConfig> {
        let Some(preset) = PRESETS.iter().find(|p| p.name == self.preset) else {
            let names = PRESETS.map(|p| p.name).join(", ");
            let what = format!("--preset {}", self.preset);
            return Err(Error::argument(what, "is no preset", format!("give one of {names}")));
        };
        Ok(GptConfig {
            layers: preset.layers,
            heads: preset.heads,
            width: preset.width,
            block,
            vocabulary,
            attention: self.attention.clone(),
        })
    }
}
