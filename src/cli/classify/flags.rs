//! The settings of `attn train classify`: one struct that is flags, a recipe's keys, and what a checkpoint keeps.
//!
//! All are optional. A recipe lies under the flags, a resumed run's settings likewise; what neither says has the default
//! that is documented at the flag.

use crate::cli::of_no_use;
use crate::data::labelled::{Columns, Header, Separator};
use crate::data::words::{SpecialTokens, Splitter};
use crate::data::{Column, DataOrder, WordIndex};
use crate::error::{Error, Result};
use crate::model::classifier::{ClassifierConfig, ModelName, Padding, Pool};
use crate::optimizer::{OptimizerName, OptimizerSettings};
use crate::train::classify::{Fit, Measure};
use crate::train::{Schedule, ScheduleName};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Flags that decide a run's numbers, and when it evaluates.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Flags {
    /// What makes one vector of a text: mean-logreg (the mean of known words' vectors), mean-ffnn (with a hidden layer),
    /// bow-logreg (a bag of words), self-attention, head-attention (averages weighted by softmax(X·H)), gru, rnn, transformer
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    pub model: Option<ModelName>,
    /// Table of texts and labels to learn: comma-separated where the name ends in .csv, else tab-separated
    #[arg(long, value_name = "FILE")]
    pub train: Option<PathBuf>,
    /// Table to choose the best epoch by
    #[arg(long, value_name = "FILE")]
    pub dev: Option<PathBuf>,
    /// Table that is read once, at the end, by the best checkpoint
    #[arg(long, value_name = "FILE")]
    pub test: Option<PathBuf>,
    /// Column of the texts: a name in the first row, or a number from 1
    #[arg(long, value_name = "NAME|N")]
    pub text_column: Option<String>,
    /// Column of the labels
    #[arg(long, value_name = "NAME|N")]
    pub label_column: Option<String>,
    /// Whether the first row names the columns [default: auto: where a column is given by name]
    #[arg(long, value_name = "yes|no|auto", hide_possible_values = true)]
    pub header: Option<Header>,
    /// What stands between columns [default: as the file's name says]
    #[arg(long, value_name = "tab|comma", hide_possible_values = true)]
    pub separator: Option<Separator>,
    /// Labels in the order of their classes; of two the second counts as positive [default: sorted]
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub labels: Option<Vec<String>>,
    /// Learn only so many texts, drawn by the seed; several numbers, as in 10,100,1000: a run for each, and their curve
    #[arg(long, value_name = "N[,N…]", value_delimiter = ',')]
    pub examples: Option<Vec<usize>>,
    /// Word vectors: GloVe's or word2vec's text, word2vec's binary form, a PyTorch state dict, or safetensors [default:
    /// drawn at random for the training set's words]
    #[arg(long, value_name = "FILE")]
    pub vectors: Option<PathBuf>,
    /// Read only so many vectors, the first
    #[arg(long, value_name = "N")]
    pub first_vectors: Option<usize>,
    /// Which tensor of --vectors [default: target_embeddings.weight, or the only matrix]
    #[arg(long, value_name = "NAME")]
    pub embedding_key: Option<String>,
    /// Which row of --vectors is which word's: JSON in either direction
    #[arg(long, value_name = "FILE")]
    pub word_index: Option<PathBuf>,
    /// Width of vectors that are drawn at random [default: 100]
    #[arg(long, value_name = "N")]
    pub dim: Option<usize>,
    /// Leave the vectors as they are
    #[arg(long, value_name = "yes|no", num_args = 0..=1, default_missing_value = "true", value_parser = switch())]
    pub freeze_embeddings: Option<bool>,
    /// What splits texts [default: words]
    #[arg(long, value_name = "words|regexp|treebank|whitespace", hide_possible_values = true)]
    pub tokenizer: Option<Splitter>,
    /// Lower-case words
    #[arg(long, value_name = "yes|no", num_args = 0..=1, default_missing_value = "true", value_parser = switch())]
    pub lowercase: Option<bool>,
    /// Words that occur less often in the training set have no row, where there are no --vectors [default: 1]
    #[arg(long, value_name = "N")]
    pub min_count: Option<u64>,
    /// The word whose row fills up; its vector is zeros unless --vectors has it [default: <PAD>]
    #[arg(long, value_name = "WORD")]
    pub pad_token: Option<String>,
    /// The word whose row unknown words have; likewise [default: <UNK>]
    #[arg(long, value_name = "WORD")]
    pub unk_token: Option<String>,
    /// Read so many words of a text; what is cut off is counted [default: all]
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// bow-logreg: whether words are counted; no: only which occur [default: yes]
    #[arg(long, value_name = "yes|no", num_args = 0..=1, default_missing_value = "true", value_parser = switch())]
    pub counts: Option<bool>,
    /// Widths of hidden layers with tanh before the last layer [default: mean-ffnn 20, others none]
    #[arg(long, value_name = "N[,N…]", value_delimiter = ',')]
    pub hidden: Option<Vec<usize>>,
    /// Heads (head-attention, transformer) [default: 4]
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Leave attention's weights as they were drawn: H, uniform between -0.5 and 0.5 (head-attention); W_q, W_k and W_v
    /// (self-attention)
    #[arg(long, value_name = "yes|no", num_args = 0..=1, default_missing_value = "true", value_parser = switch())]
    pub freeze_heads: Option<bool>,
    /// Width of queries and keys (self-attention) [default: 64]
    #[arg(long, value_name = "N")]
    pub key_width: Option<usize>,
    /// What self-attention's mean goes over: tokens; or features of each token, a mistake that leaves a number for each
    /// place, for comparison [default: tokens]
    #[arg(long, value_name = "tokens|features", hide_possible_values = true)]
    pub pool: Option<Pool>,
    /// What self-attention and head-attention see behind a text that is shorter than others of its batch: masked, nothing;
    /// zeroed, vectors of zeros, a mistake, for comparison: each still has the weight e⁰ [default: masked]
    #[arg(long, value_name = "masked|zeroed", hide_possible_values = true)]
    pub padding: Option<Padding>,
    /// Add a learned vector for each place (head-attention, self-attention, transformer); texts are
    /// read up to --max-length words [its default is then the longest training text]
    #[arg(long, value_name = "yes|no", num_args = 0..=1, default_missing_value = "true", value_parser = switch())]
    pub positions: Option<bool>,
    /// Layers (gru, rnn, transformer) [default: 1]
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
    /// Hidden units of each direction (gru, rnn) [default: 64]
    #[arg(long, value_name = "N")]
    pub units: Option<usize>,
    /// Whether gru and rnn also go backwards [default: yes]
    #[arg(long, value_name = "yes|no", num_args = 0..=1, default_missing_value = "true", value_parser = switch())]
    pub bidirectional: Option<bool>,
    /// Attention variant (transformer) [default: softmax-attention]
    #[arg(long, value_name = "NAME")]
    pub attention: Option<String>,
    /// Part of the activations that is dropped: between layers, and before the last [default: 0]
    #[arg(long, value_name = "P")]
    pub dropout: Option<f64>,
    /// Times that every text is learned, at most [default: 20]
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,
    /// Texts a step [default: 16]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Order of texts: random, anew in each epoch, or sequential [default: random]
    #[arg(long, value_name = "random|sequential", hide_possible_values = true)]
    pub data_order: Option<DataOrder>,
    /// Seed of initial weights, order and dropout [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Evaluate after every N steps [default: after each epoch]
    #[arg(long, value_name = "N")]
    pub eval_every: Option<u64>,
    /// Log the mean loss of every N steps [default: 500]
    #[arg(long, value_name = "N")]
    pub log_every: Option<u64>,
    /// Stop after N evaluations in a row without a better one; 0: never [default: 0]
    #[arg(long, value_name = "N")]
    pub patience: Option<u64>,
    /// What makes an evaluation better: accuracy, f1 or loss [default: accuracy]
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    pub best_by: Option<Measure>,
    /// Optimiser, with torch.optim's formulas and defaults [default: adam]
    #[arg(long, value_name = "adam|adamw|sgd|adagrad", hide_possible_values = true)]
    pub optimizer: Option<OptimizerName>,
    /// Learning rate, the highest that the schedule reaches [default: adagrad 1e-2, others 1e-3]
    #[arg(long, value_name = "X")]
    pub lr: Option<f64>,
    /// Decay of the mean of gradients (adam, adamw) [default: 0.9]
    #[arg(long, value_name = "X")]
    pub beta1: Option<f64>,
    /// Decay of the mean of squared gradients (adam, adamw) [default: 0.999]
    #[arg(long, value_name = "X")]
    pub beta2: Option<f64>,
    /// Added to the root of squared gradients (adam, adamw, adagrad) [default: 1e-8, adagrad 1e-10]
    #[arg(long, value_name = "X")]
    pub eps: Option<f64>,
    /// Part of the last direction that goes on (sgd) [default: 0]
    #[arg(long, value_name = "X")]
    pub momentum: Option<f64>,
    /// Decoupled weight decay of all parameters (adamw) [default: 0.01]
    #[arg(long, value_name = "X")]
    pub weight_decay: Option<f64>,
    /// Weight decay in the gradient, of all parameters (adam, sgd, adagrad) [default: 0]
    #[arg(long, value_name = "X")]
    pub weight_decay_l2: Option<f64>,
    /// Largest norm of all gradients together [default: inf: none]
    #[arg(long, value_name = "X")]
    pub grad_clip: Option<f64>,
    /// How the learning rate changes: constant, linear, cosine, step, plateau [default: constant]
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    pub schedule: Option<ScheduleName>,
    /// Steps over which the rate first rises from 0 [default: 0]
    #[arg(long, value_name = "N")]
    pub warmup: Option<u64>,
    /// What the schedule does not go below [default: 0]
    #[arg(long, value_name = "X")]
    pub min_lr: Option<f64>,
    /// Steps between falls (step)
    #[arg(long, value_name = "N")]
    pub step_size: Option<u64>,
    /// What the rate is multiplied with (step, plateau) [default: 0.1]
    #[arg(long, value_name = "X")]
    pub gamma: Option<f64>,
    /// Evaluations without a better one that are borne before the rate falls (plateau) [default: 10]
    #[arg(long, value_name = "N")]
    pub plateau_patience: Option<u64>,
}

/// `--flag`, `--flag yes`, `--flag no`.
fn switch() -> impl clap::builder::TypedValueParser<Value = bool> {
    use clap::builder::TypedValueParser;
    clap::builder::PossibleValuesParser::new(["yes", "no", "true", "false"]).map(|text| text == "yes" || text == "true")
}

/// Flags by name, without those that say nothing.
pub fn said(flags: &Flags) -> Map<String, Value> {
    let Value::Object(all) = serde_json::to_value(flags).expect("flags are plain data") else {
        unreachable!("flags are a struct")
    };
    all.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

/// A flag's value as one gives it.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// Flags that only some models have a use for, and which.
const OF_MODELS: [(&str, &[ModelName]); 18] = {
    use ModelName::*;
    let all_but_bow: &[ModelName] = &[MeanLogreg, MeanFfnn, SelfAttention, HeadAttention, Gru, Rnn, Transformer];
    [
        ("vectors", all_but_bow),
        ("first-vectors", all_but_bow),
        ("embedding-key", all_but_bow),
        ("word-index", all_but_bow),
        ("dim", all_but_bow),
        ("freeze-embeddings", all_but_bow),
        ("counts", &[BowLogreg]),
        ("hidden", all_but_bow),
        ("heads", &[HeadAttention, Transformer]),
        ("freeze-heads", &[HeadAttention, SelfAttention]),
        ("key-width", &[SelfAttention]),
        ("pool", &[SelfAttention]),
        ("padding", &[SelfAttention, HeadAttention]),
        ("positions", &[HeadAttention, SelfAttention, Transformer]),
        ("layers", &[Gru, Rnn, Transformer]),
        ("units", &[Gru, Rnn]),
        ("bidirectional", &[Gru, Rnn]),
        ("attention", &[Transformer]),
    ]
};

/// What a resumed run may have otherwise than before.
const MAY_CHANGE: [&str; 5] = ["epochs", "patience", "train", "dev", "test"];

impl Flags {
    /// These, and where they say nothing, `base`.
    pub fn over(&self, base: &Flags) -> Flags {
        let mut all = said(base);
        all.extend(said(self));
        serde_json::from_value(Value::Object(all)).expect("flags that were flags before")
    }

    /// A resumed run's flags.
    ///
    /// # Errors
    /// If one contradicts what the run has, and would change its numbers.
    pub fn resume(&self, stored: &Flags) -> Result<Flags> {
        let before = said(stored);
        for (name, value) in said(self) {
            let old = before.get(&name);
            if old != Some(&value) && !MAY_CHANGE.contains(&name.as_str()) {
                let problem = format!("the run to resume has {}", old.map_or("the default".into(), shown));
                let value = shown(&value);
                return Err(Error::argument(format!("--{name} {value}"), problem, "leave the flag out, or start anew"));
            }
        }
        Ok(self.over(stored))
    }

    /// Which columns hold what.
    ///
    /// # Errors
    /// If one is not said, or is neither a number nor a name.
    pub fn columns(&self) -> Result<Columns> {
        let column = |flag: &str, value: &Option<String>| -> Result<Column> {
            let Some(value) = value else {
                let problem = "is missing: nothing says where the table has it";
                return Err(Error::argument(
                    flag,
                    problem,
                    "give a column's name in the first row, or its number from 1",
                ));
            };
            value.parse().map_err(|e: String| Error::argument(format!("{flag} {value}"), "names no column", e))
        };
        let (text, label) =
            (column("--text-column", &self.text_column)?, column("--label-column", &self.label_column)?);
        let header = self.header.unwrap_or_default();
        Ok(Columns { header, separator: self.separator, ..Columns::new(text, Some(label), None) })
    }

    /// The special tokens.
    pub fn special(&self) -> SpecialTokens {
        let token = |given: &Option<String>, default: &str| Some(given.clone().unwrap_or(default.into()));
        SpecialTokens { pad: token(&self.pad_token, "<PAD>"), unk: token(&self.unk_token, "<UNK>") }
    }

    /// The model, for these labels and the words of this table of vectors.
    ///
    /// # Errors
    /// If a flag is missing, out of range, or means nothing to the model.
    pub fn config(&self, labels: Vec<String>, index: &WordIndex, width: usize) -> Result<ClassifierConfig> {
        let model = self.required_model()?;
        self.check_model(model)?;
        let hidden = if model == ModelName::MeanFfnn { vec![20] } else { Vec::new() };
        let config = ClassifierConfig {
            model,
            labels,
            vocabulary: index.len(),
            width: if model == ModelName::BowLogreg { 0 } else { width },
            freeze_embeddings: self.freeze_embeddings.unwrap_or(false),
            hidden: self.hidden.clone().unwrap_or(hidden),
            heads: self.heads.unwrap_or(4),
            freeze_heads: self.freeze_heads.unwrap_or(false),
            key_width: self.key_width.unwrap_or(64),
            pool: self.pool.unwrap_or_default(),
            padding: self.padding.unwrap_or_default(),
            pad_row: index.pad().unwrap_or(0),
            positions: self.positions.unwrap_or(false),
            max_length: self.max_length.unwrap_or(0),
            layers: self.layers.unwrap_or(1),
            units: self.units.unwrap_or(64),
            bidirectional: self.bidirectional.unwrap_or(true),
            attention: self.attention.clone().unwrap_or("softmax-attention".into()),
            dropout: self.dropout.unwrap_or(0.0),
            counts: self.counts.unwrap_or(true),
            tokenizer: self.tokenizer.unwrap_or(Splitter::Words),
            lowercase: self.lowercase.unwrap_or(false),
            special: self.special(),
        };
        config.check()?;
        Ok(config)
    }

    /// The model's name.
    ///
    /// # Errors
    /// If it is not said.
    pub fn required_model(&self) -> Result<ModelName> {
        self.model.ok_or_else(|| {
            let names: Vec<&str> = <ModelName as clap::ValueEnum>::value_variants().iter().map(|m| m.name()).collect();
            Error::argument("--model", "is missing", format!("give one of {}", names.join(", ")))
        })
    }

    /// Without what means nothing to a model: settings that several models share.
    pub fn of_model(&self, model: ModelName) -> Flags {
        let mut said = said(self);
        for (flag, _) in OF_MODELS.into_iter().filter(|(_, models)| !models.contains(&model)) {
            said.remove(flag);
        }
        serde_json::from_value(Value::Object(said)).expect("flags that were flags before")
    }

    fn check_model(&self, model: ModelName) -> Result<()> {
        let said = said(self);
        for (flag, models) in OF_MODELS {
            if let Some(value) = said.get(flag).filter(|_| !models.contains(&model)) {
                let names: Vec<&str> = models.iter().map(|m| m.name()).collect();
                return Err(of_no_use(flag, shown(value), ("model", model.name()), &names));
            }
        }
        Ok(())
    }

    /// The optimiser, with torch.optim's defaults.
    ///
    /// # Errors
    /// If a value is out of range, or means nothing to the optimiser.
    pub fn optimizer(&self) -> Result<OptimizerSettings> {
        use OptimizerName::*;
        let name = self.optimizer.unwrap_or(Adam);
        let torch = match name {
            AdamW => OptimizerSettings { lr: 1e-3, beta2: 0.999, weight_decay: 0.01, ..OptimizerSettings::of(AdamW) },
            other => OptimizerSettings::of(other),
        };
        let settings = OptimizerSettings {
            name,
            lr: self.lr.unwrap_or(torch.lr),
            beta1: self.beta1.unwrap_or(torch.beta1),
            beta2: self.beta2.unwrap_or(torch.beta2),
            eps: self.eps.unwrap_or(torch.eps),
            momentum: self.momentum.unwrap_or(torch.momentum),
            weight_decay: self.weight_decay.unwrap_or(torch.weight_decay),
            weight_decay_l2: self.weight_decay_l2.unwrap_or(torch.weight_decay_l2),
            max_norm: self.grad_clip.unwrap_or(f64::INFINITY),
        };
        let of: [(&str, Option<f64>, &[OptimizerName], bool); 8] = [
            ("lr", self.lr, &[AdamW, Adam, Sgd, Adagrad], settings.lr.is_finite() && settings.lr >= 0.0),
            ("beta1", self.beta1, &[AdamW, Adam], (0.0..1.0).contains(&settings.beta1)),
            ("beta2", self.beta2, &[AdamW, Adam], (0.0..1.0).contains(&settings.beta2)),
            ("eps", self.eps, &[AdamW, Adam, Adagrad], settings.eps > 0.0 && settings.eps.is_finite()),
            ("momentum", self.momentum, &[Sgd], (0.0..1.0).contains(&settings.momentum)),
            ("weight-decay", self.weight_decay, &[AdamW], (0.0..f64::INFINITY).contains(&settings.weight_decay)),
            (
                "weight-decay-l2",
                self.weight_decay_l2,
                &[Adam, Sgd, Adagrad],
                (0.0..f64::INFINITY).contains(&settings.weight_decay_l2),
            ),
            ("grad-clip", self.grad_clip, &[AdamW, Adam, Sgd, Adagrad], settings.max_norm > 0.0),
        ];
        for (flag, given, has, fits) in of {
            let Some(value) = given else { continue };
            if !has.contains(&name) {
                let names: Vec<&str> = has.iter().map(|o| o.name()).collect();
                return Err(of_no_use(flag, value, ("optimizer", name.name()), &names));
            }
            if !fits {
                let remedy =
                    "give a finite number, 0 or more; decays of means and momentum below 1; eps and grad-clip above 0";
                return Err(Error::argument(format!("--{flag} {value}"), "is out of range", remedy));
            }
        }
        Ok(settings)
    }

    /// How the run goes; `an_epoch` is its number of steps.
    ///
    /// # Errors
    /// If a value is out of range, or means nothing to the schedule.
    pub fn fit(&self, texts: usize) -> Result<Fit> {
        use ScheduleName::*;
        let (epochs, batch) = (self.epochs.unwrap_or(20), self.batch_size.unwrap_or(16));
        for (flag, value) in [("epochs", epochs), ("batch-size", batch as u64)] {
            if !(1..=1 << 20).contains(&value) {
                return Err(Error::argument(format!("--{flag} {value}"), "is out of range", "give 1 to 1048576"));
            }
        }
        let lr = self.optimizer()?.lr;
        let steps = epochs * crate::train::classify::steps_an_epoch(texts, batch);
        let name = self.schedule.unwrap_or_default();
        let schedule = Schedule {
            name,
            warmup: self.warmup.unwrap_or(0),
            min_lr: self.min_lr.unwrap_or(0.0),
            schedule_steps: steps,
            step_size: self.step_size.unwrap_or(0),
            gamma: self.gamma.unwrap_or(0.1),
            patience: self.plateau_patience.unwrap_or(10),
        };
        let said = said(self);
        let of: [(&str, &[ScheduleName]); 4] = [
            ("min-lr", &[Linear, Cosine, Step, Plateau]),
            ("step-size", &[Step]),
            ("gamma", &[Step, Plateau]),
            ("plateau-patience", &[Plateau]),
        ];
        for (flag, has) in of {
            if let Some(value) = said.get(flag).filter(|_| !has.contains(&name)) {
                let names: Vec<&str> = has.iter().map(|s| s.name()).collect();
                return Err(of_no_use(flag, shown(value), ("schedule", name.name()), &names));
            }
        }
        let wrong = |flag: &str, problem: &str, remedy: &str| Err(Error::argument(flag, problem, remedy));
        if name == Step && schedule.step_size == 0 {
            return wrong("--schedule step", "does not say when to fall", "give --step-size N");
        }
        if !(0.0..=lr).contains(&schedule.min_lr) {
            return wrong("--min-lr", "is out of range", "give 0 or more, at most --lr");
        }
        if !(schedule.gamma > 0.0 && schedule.gamma <= 1.0) {
            return wrong("--gamma", "is out of range", "give more than 0, at most 1");
        }
        if [Linear, Cosine].contains(&name) && schedule.warmup >= steps {
            return wrong("--warmup", "leaves no steps to fall in", "give fewer, or more --epochs");
        }
        Ok(Fit {
            epochs,
            batch,
            order: self.data_order.unwrap_or(DataOrder::Random),
            seed: self.seed.unwrap_or(1),
            eval_every: self.eval_every.unwrap_or(0),
            patience: self.patience.unwrap_or(0),
            best_by: self.best_by.unwrap_or_default(),
            log_every: self.log_every.unwrap_or(500),
            lr,
            schedule,
        })
    }
}
