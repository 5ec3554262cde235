//! What a classifier looks at: the weights of its heads, or what each word does for its prediction.

use super::{Args, Shown, WIDTH, chosen, visible};
use crate::cli::{Status, print, print_line};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::model::classifier::{Classifier, Predicted, contributions};
use crate::plot::heat::{Figure, Panel};
use crate::plot::terminal;
use serde_json::json;
use std::path::Path;

/// Shows it.
///
/// # Errors
/// If the directory, the text or a flag will not do, or a file cannot be written.
pub(super) fn show(from: &Path, args: &Args, shown: Shown) -> Result<Status> {
    let device = args.device.open(Precision::F32)?;
    let mut classifier = Classifier::open(from, device.clone())?;
    let found = classifier.predict(&[&args.text])?.remove(0);
    let label = &classifier.labels()[found.class];
    if found.encoded.rows.is_empty() {
        let problem = format!("has no word that {} knows", from.display());
        return Err(Error::argument("--text", problem, "give one with words of the training set or the vectors"));
    }
    let prediction = format!("predicted: {label} ({:.1} %)", 100.0 * found.probabilities[found.class]);
    let words: Vec<String> = found.encoded.words.iter().map(|w| visible(w)).collect();
    let figure = |title: &str, rows: Vec<String>, cells: Vec<Vec<f64>>, unit: &str, signed: bool| Figure {
        title: title.into(),
        subtitle: format!("{}; {prediction}", from.display()),
        rows,
        columns: words.clone(),
        panels: vec![vec![Panel {
            title: classifier.config().model.name().into(),
            cells: cells.into_iter().map(|row| row.into_iter().map(Some).collect()).collect(),
        }]],
        unit: unit.into(),
        signed,
    };
    let Predicted { probabilities, weights, .. } = &found;
    let base = json!({
        "words": words, "label": label, "model": classifier.config().model.name(),
        "probabilities": classifier.labels().iter().cloned().zip(probabilities.iter().map(|p| json!(p)))
            .collect::<serde_json::Map<_, _>>(),
    });
    if !weights.is_empty() {
        let heads = chosen("--head", &args.head, weights.len())?;
        let names = heads.iter().map(|h| format!("head {h}")).collect();
        let cells: Vec<Vec<f64>> = heads.iter().map(|&h| weights[h].clone()).collect();
        let mut value = base;
        value["heads"] = heads.iter().map(|&h| json!({ "head": h, "weights": weights[h] })).collect();
        let drawn = figure("Attention weights", names, cells, "Probability", false);
        shown.files(&drawn, &value)?;
        let width = terminal_size::terminal_size().map_or(WIDTH, |(width, _)| width.0 as usize);
        print(terminal::to_text(&turned(&drawn, &heads), width))?;
    } else {
        if !args.head.is_empty() {
            let problem = format!("means nothing to {}", classifier.config().model.name());
            return Err(Error::argument("--head", problem, "leave it out"));
        }
        let of_words = contributions(from, &args.text, found.class, device)?.of_words;
        let mut value = base;
        value["contributions"] = json!(of_words);
        let rows = vec![format!("for {label}")];
        shown.files(&figure("Gradient × input", rows, vec![of_words.clone()], "Contribution", true), &value)?;
        print_line(format_args!(
            "{}; {prediction}\ngradient × input: what speaks for {label}, word by word\n",
            from.display()
        ))?;
        print(bars(&words, &of_words))?;
    }
    shown.said(args)
}

/// Words down and heads across: a terminal has no room for words above narrow columns.
fn turned(figure: &Figure, heads: &[usize]) -> Figure {
    let panel = &figure.panels[0][0];
    let cells = (0..figure.columns.len()).map(|word| panel.cells.iter().map(|head| head[word]).collect()).collect();
    Figure {
        rows: figure.columns.clone(),
        columns: heads.iter().map(usize::to_string).collect(),
        panels: vec![vec![Panel { title: format!("{}, head by head", panel.title), cells }]],
        ..figure.clone()
    }
}

/// Columns of the longest bar.
const BAR: f64 = 24.0;

/// A line a word: a bar to the left against, to the right for.
fn bars(words: &[String], of_words: &[f64]) -> String {
    let widest = words.iter().map(|w| w.chars().count()).max().unwrap_or(0);
    let largest = of_words.iter().fold(f64::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    let line = |(word, x): (&String, &f64)| {
        let bar = "█".repeat((x.abs() / largest * BAR).round() as usize);
        let [against, for_it] = if *x < 0.0 { [bar.as_str(), ""] } else { ["", bar.as_str()] };
        let pad = widest - word.chars().count();
        let text = format!("{}{word}  {x:+.4}  {against:>bar$}│{for_it}", " ".repeat(pad), bar = BAR as usize);
        text.trim_end().to_string() + "\n"
    };
    words.iter().zip(of_words).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_point_to_their_side() {
        let text = bars(&["a".into(), "bad".into()], &[0.5, -1.0]);
        let expected =
            format!("  a  +0.5000  {}│{}\nbad  -1.0000  {}│\n", " ".repeat(24), "█".repeat(12), "█".repeat(24));
        assert_eq!(text, expected);
    }
}
