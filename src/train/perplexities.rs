//! A model's loss on texts and sentences, at several batch sizes: what `attn eval lm` and sweeps print.
//!
//! Of documents there are two perplexities, which published tables confuse. `perplexity` is exp(total loss / tokens), and
//! every token weighs the same. `mean_document_perplexity` is the mean of exp(a document's loss): every document weighs
//! the same, and a few that are hard decide it, as exp grows fast; by Jensen's inequality it is never smaller than
//! exp(`mean_document_loss`).

use super::{Evaluation, Evaluator, checkpoint::Checkpoint};
use crate::data::{Corpus, Documents, Ends, Format, Text, Tokenizer, read};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Gpt, HeadMerge};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// What a model is evaluated on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// This text, a document of its own.
    Sentence(String),
}

/// A text with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// What tables call it.
    pub name: String,
    /// Where it is.
    pub source: Source,
}

/// What is to be evaluated, and how texts are read and cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The texts.
    pub samples: Vec<Sample>,
    /// Rows computed at once; each gives figures of its own.
    pub batch_sizes: Vec<usize>,
    /// One stream, or documents.
    pub format: Format,
    /// Documents are cut to so many tokens, their start and stop included.
    pub max_length: Option<usize>,
    /// Inputs from one window to the next, in texts longer than a block [default: the block].
    pub stride: Option<usize>,
    /// How heads are merged, where not as in training.
    pub head_merge: Option<HeadMerge>,
}

/// What documents' losses come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DocumentMeans {
    /// How many have something to predict.
    pub documents: usize,
    /// The mean of their losses.
    pub mean_document_loss: f64,
    /// The mean of exp(a document's loss).
    pub mean_document_perplexity: f64,
}

impl DocumentMeans {
    /// Of these documents; those without a prediction do not count.
    pub fn of(found: &[Evaluation]) -> DocumentMeans {
        let counted: Vec<f64> = found.iter().filter(|d| d.tokens > 0).map(|d| d.loss).collect();
        let n = counted.len().max(1) as f64;
        DocumentMeans {
            documents: counted.len(),
            mean_document_loss: counted.iter().sum::<f64>() / n,
            mean_document_perplexity: counted.iter().map(|l| l.exp()).sum::<f64>() / n,
        }
    }
}

/// A model on a text at a batch size.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The model's name.
    pub checkpoint: String,
    /// The text's name.
    pub text: String,
    /// Rows computed at once.
    pub batch_size: usize,
    /// All its predictions together.
    pub found: Evaluation,
    /// Each document's, where the text holds documents.
    pub documents: Option<Vec<Evaluation>>,
}

impl Row {
    /// Its means over documents, where it has them.
    pub fn means(&self) -> Option<DocumentMeans> {
        self.documents.as_deref().map(DocumentMeans::of)
    }

    /// Its figures by name; every document's too where asked.
    pub fn to_json(&self, per_document: bool) -> Value {
        let Evaluation { tokens, loss } = self.found;
        let mut json = json!({
            "checkpoint": self.checkpoint, "text": self.text, "batch_size": self.batch_size,
            "tokens": tokens, "loss": loss, "perplexity": self.found.perplexity(),
        });
        if let Some(means) = self.means() {
            json["documents"] = means.documents.into();
            json["mean_document_loss"] = means.mean_document_loss.into();
            json["mean_document_perplexity"] = means.mean_document_perplexity.into();
        }
        if let (true, Some(documents)) = (per_document, &self.documents) {
            let one = |d: &Evaluation| json!({ "tokens": d.tokens, "loss": d.loss, "perplexity": d.perplexity() });
            json["per_document"] = documents.iter().map(one).collect();
        }
        json
    }
}

/// A text made into tokens.
#[derive(Debug)]
struct Loaded {
    name: String,
    corpus: Corpus,
    sentence: bool,
}

/// A checkpoint's loss on every sample at every batch size, the sizes of a sample beside each other. A sentence at a
/// batch size above 1 is computed together with the first rows of the first file, which do not count: a model whose
/// rows depend on each other shows it there. `name` is what rows call the model; `remark` hears what a text's reader
/// should know (unknown words, documents left out); `progress` hears what is done of how much.
///
/// # Errors
/// If a text cannot be read or encoded, has nothing to predict, or the device fails.
pub fn perplexities(
    checkpoint: &Checkpoint,
    name: &str,
    request: &Request,
    device: &Arc<dyn Device>,
    mut remark: impl FnMut(String),
    mut progress: impl FnMut(&str, usize, usize),
) -> Result<Vec<Row>> {
    let config = checkpoint.config().clone();
    let gpt = Gpt::new(match request.head_merge {
        Some(merge) => config.with_head_merge(merge),
        None => config,
    })?;
    let block = gpt.config().block;
    let stride = request.stride.unwrap_or(block);
    if stride == 0 || stride > block {
        let problem = format!("leaves tokens out: windows have {block}, the model's block size");
        return Err(Error::argument(format!("--stride {stride}"), problem, format!("give 1 to {block}")));
    }
    let loaded: Vec<Loaded> = request
        .samples
        .iter()
        .map(|sample| load(sample, request, checkpoint.tokenizer(), &mut remark))
        .collect::<Result<_>>()?;
    let mates = loaded.iter().find(|l| !l.sentence).map(|l| &l.corpus);
    let mut rows = Vec::new();
    // One plan holds the parameters, and the others copy them.
    let mut first: Option<Evaluator> = None;
    for Loaded { name: text, corpus, sentence } in &loaded {
        let count = corpus.windows(block, stride).count();
        for &batch_size in &request.batch_sizes {
            let mates = mates.filter(|_| *sentence && batch_size > 1);
            let longest = [Some(corpus), mates].into_iter().flatten().map(longest).max().unwrap_or(1);
            let size = if mates.is_some() { batch_size } else { batch_size.min(count) };
            let graph = gpt.loss_of_length(size, longest.clamp(1, block), 0.0)?;
            let evaluator = Evaluator::new(graph, device.clone())?;
            match &first {
                Some(first) => evaluator.plan().copy_parameters(first.plan())?,
                None => checkpoint.load_parameters(evaluator.plan())?,
            }
            let found = evaluator
                .documents(corpus, corpus.windows(block, stride), mates, |done| progress(text, done, count))?;
            let tokens = found.iter().map(|d| d.tokens).sum();
            let total: f64 = found.iter().map(|d| d.loss * d.tokens as f64).sum();
            rows.push(Row {
                checkpoint: name.into(),
                text: text.clone(),
                batch_size,
                found: Evaluation { tokens, loss: total / tokens as f64 },
                documents: corpus.has_documents().then_some(found),
            });
            first.get_or_insert(evaluator);
        }
    }
    Ok(rows)
}

/// The most inputs that a document has.
fn longest(corpus: &Corpus) -> usize {
    (0..corpus.len()).map(|d| corpus.document(d).len().saturating_sub(1)).max().unwrap_or(0)
}

fn load(sample: &Sample, request: &Request, tokenizer: &Tokenizer, remark: &mut impl FnMut(String)) -> Result<Loaded> {
    let name = sample.name.clone();
    let documents = request.format.documents == Documents::Lines;
    let (corpus, sentence) = match &sample.source {
        Source::File(path) => {
            let (corpus, found) = read(&Text::open(path)?, &request.format, tokenizer, |_| ())?;
            found.remarks(tokenizer).into_iter().for_each(|r| remark(format!("{name}: {r}")));
            (corpus, false)
        }
        Source::Sentence(text) => {
            let mut tokens = tokenizer.encode(text, &name)?;
            if documents {
                let specials = tokenizer.specials();
                tokens = specials.start.into_iter().chain(tokens).chain(specials.stop).collect();
            }
            let ends = Ends::Memory(vec![tokens.len() as u64]);
            (if documents { Corpus::documents(tokens, ends) } else { Corpus::text(tokens) }, true)
        }
    };
    let corpus = match request.max_length {
        Some(length) => {
            let (cut, tokens) = corpus.beyond(length);
            if cut > 0 {
                remark(format!("{name}: {cut} documents cut to {length} tokens ({tokens} tokens left out)"));
            }
            corpus.limited(length)
        }
        None => corpus,
    };
    if longest(&corpus) == 0 {
        let unit = tokenizer.unit();
        let problem = format!("has fewer than two {unit}, so that there is nothing to predict");
        return Err(match &sample.source {
            Source::File(path) => Error::file(path, problem, "give a longer text"),
            Source::Sentence(_) => Error::argument(format!("--sentence {name}"), problem, "give a longer one"),
        });
    }
    Ok(Loaded { name, corpus, sentence })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_figures_of_documents() {
        let of = |tokens, loss: f64| Evaluation { tokens, loss };
        // Perplexities 2, 8 and none.
        let documents = vec![of(3, 2f64.ln()), of(1, 8f64.ln()), of(0, 0.0)];
        let found = of(4, (3.0 * 2f64.ln() + 8f64.ln()) / 4.0);
        let row = Row { checkpoint: "c".into(), text: "t".into(), batch_size: 2, found, documents: Some(documents) };
        let json = row.to_json(true);
        let close = |key: &str, expected: f64| {
            let value = json[key].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-12, "{key}: {value}");
        };
        close("perplexity", 64f64.powf(0.25));
        close("mean_document_loss", 4f64.ln());
        close("mean_document_perplexity", 5.0);
        assert_eq!((&json["documents"], &json["per_document"][1]["tokens"]), (&2.into(), &1.into()));
    }
}
