//! What is done with trained classifiers: `attn predict`, `attn eval classify`, `attn heatmap --classifier`.

#[path = "common/place.rs"]
mod place;

use place::Place;
use serde_json::Value;
use std::fs;

const GOOD: [&str; 4] = ["fine", "great", "lovely", "warm"];
const BAD: [&str; 4] = ["awful", "dull", "weak", "cold"];

/// Sentences with one word that decides, and words that mean nothing.
fn table(rows: usize) -> String {
    let noise = ["the", "film", "is", "a", "plot", "with", "end"];
    let row = |i: usize| {
        let (label, words) = if i.is_multiple_of(2) { ("pos", GOOD) } else { ("neg", BAD) };
        let before = (0..i % 5).map(|j| noise[(i + 2 * j) % 7]).collect::<Vec<_>>().join(" ");
        format!("{}\t{label}\t{before} {} {}\n", 100 + i, words[i / 2 % 4], noise[i * 3 % 7])
    };
    (0..rows).map(row).collect()
}

/// A folder with a trained model of each name.
fn trained(models: &[&str]) -> Place {
    let place = Place::new();
    place.text("train.tsv", table(40));
    for model in models {
        let more = match *model {
            "head-attention" => "--heads 2 --dim 8",
            "gru" => "--units 4 --dim 8",
            "mean-logreg" => "--dim 8",
            _ => "",
        };
        place.attn(&format!(
            "train classify --model {model} {more} --train train.tsv --dev train.tsv --text-column 3 --label-column 2 \
             --optimizer adam --lr 2e-2 --epochs 12 --batch-size 8 --out {model}"
        ));
    }
    place
}

fn json(place: &Place, name: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn texts_are_predicted_wherever_they_come_from() {
    let place = trained(&["bow-logreg"]);
    let mut command = place.command("predict --checkpoint bow-logreg");
    let output = command.write_stdin("a lovely plot\nthe end is dull\n\n").assert().success();
    let said = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    let labels: Vec<&str> = said.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(&labels[..2], ["pos", "neg"], "{said}");
    let errors = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(labels.len() == 3 && errors.contains("1 of 3 texts have no word that the model knows"), "{errors}");

    // A table without labels, whose ids are passed on.
    place.text("new.csv", "id,text\n7,\"warm, great\"\n9,weak\n");
    let line = "predict --checkpoint bow-logreg --file new.csv --text-column text --id-column id";
    assert_eq!(place.attn(&format!("{line} --out out.csv")), "");
    let csv = fs::read_to_string(place.path("out.csv")).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows[0], ["id", "label", "probability_neg", "probability_pos"]);
    assert_eq!((&rows[1][..2], &rows[2][..2]), (&["7", "pos"][..], &["9", "neg"][..]));
    let [neg, pos] = [2, 3].map(|i| rows[1][i].parse::<f64>().unwrap());
    assert!(pos > neg && (pos + neg - 1.0).abs() < 1e-9);
    place.attn(&format!("{line} --out out.jsonl"));
    let jsonl = fs::read_to_string(place.path("out.jsonl")).unwrap();
    let second: Value = serde_json::from_str(jsonl.lines().nth(1).unwrap()).unwrap();
    assert!(second["id"] == "9" && second["probabilities"]["neg"].as_f64().unwrap() > 0.5, "{jsonl}");

    place.refuses("predict --checkpoint nowhere a", &["nowhere: is no directory"]);
    place.refuses("predict --checkpoint bow-logreg --out x.txt a", &["x.txt: ends neither in .csv nor in .jsonl"]);
    place.refuses("predict --checkpoint bow-logreg --file new.csv --text-column words", &["no column \"words\""]);
}

#[test]
fn evaluation_says_how_sure_it_is() {
    let place = trained(&["bow-logreg", "mean-logreg"]);
    place.text("test.tsv", table(24) + "x\tpos\tdull and cold\n");
    let line = "eval classify --test test.tsv --text-column 3 --label-column 2";
    let said = place.attn(&format!("{line} --checkpoint bow-logreg --checkpoint mean-logreg --json eval.json"));
    let json = json(&place, "eval.json");
    let row = &json["rows"][0];
    // 24 right of 25; of 13 positive ones 12 are found, and nothing else is taken for one.
    assert_eq!(row["confusion"], serde_json::json!([[12, 0], [1, 12]]), "{said}");
    let close = |value: &Value, expected: f64| assert!((value.as_f64().unwrap() - expected).abs() < 1e-12, "{value}");
    close(&row["accuracy"]["value"], 0.96);
    close(&row["precision"], 1.0);
    close(&row["recall"], 12.0 / 13.0);
    close(&row["f1"]["value"], 24.0 / 25.0);
    assert!(row["accuracy"]["low"].as_f64().unwrap() < 0.96 && row["accuracy"]["high"].as_f64().unwrap() == 1.0);
    assert!(row["difference_from_first"].is_null() && json["rows"][1]["difference_from_first"].is_object());
    assert!(said.contains("cannot be told apart on this table"), "{said}");
    place.text("other.tsv", "1\tmaybe\tdull\n");
    let other = "eval classify --checkpoint bow-logreg --text-column 3 --label-column 2 --test other.tsv";
    place.refuses(other, &["other.tsv: line 1 has the label \"maybe\"; known are neg, pos"]);
}

#[test]
fn what_a_classifier_looks_at_is_shown() {
    let place = trained(&["head-attention", "mean-logreg", "bow-logreg", "gru"]);
    let text = "thegreatplot";
    place.refuses(&format!("heatmap --classifier bow-logreg --text {text}"), &["--text: has no word"]);
    // Line by line, as the texts hold spaces.
    let show = |model: &str, more: &[&str]| {
        let mut command = place.command(&format!("heatmap --classifier {model} --json {model}.json"));
        let output = command.args(["--text", "the great plot with a great end"]).args(more).assert().success();
        (String::from_utf8(output.get_output().stdout.clone()).unwrap(), json(&place, &format!("{model}.json")))
    };
    let (said, found) = show("head-attention", &["--out", "heads.svg"]);
    assert!(said.contains("predicted: pos") && said.contains("\ngreat ") && said.contains("0 1\n"), "{said}");
    for head in 0..2 {
        let weights = numbers(&found["heads"][head]["weights"]);
        assert!(weights.len() == 7 && (weights.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{weights:?}");
    }
    assert!(fs::read_to_string(place.path("heads.svg")).unwrap().contains("great"));

    // Where words are added up, what they do is exact: with the bias they make the logit.
    let (said, found) = show("bow-logreg", &["--out", "bow.png"]);
    assert!(said.contains("│█"), "{said}");
    let of_words = numbers(&found["contributions"]);
    let bias = attn_engine::io::tensors::read(&place.path("bow-logreg/model.safetensors")).unwrap();
    let attn_engine::run_spec::Given::Real(_, bias) = &bias["bag.bias"].given else { panic!("reals") };
    let [neg, pos] = ["neg", "pos"].map(|l| found["probabilities"][l].as_f64().unwrap());
    let logit = (pos / neg).ln();
    let sum: f64 = of_words.iter().sum();
    match bias[..] {
        [one] => assert!((sum + one - logit).abs() < 1e-4, "{of_words:?} {one} {logit}"),
        // Two logits: what speaks for the class is that of its own.
        [_, _] => assert!(sum > 0.0, "{of_words:?}"),
        _ => panic!("{bias:?}"),
    }
    assert!(of_words[1] > 0.0 && (of_words[1] - of_words[5]).abs() < 1e-9, "both words alike: {of_words:?}");
    for model in ["mean-logreg", "gru"] {
        let of_words = numbers(&show(model, &[]).1["contributions"]);
        let strongest = (0..7).max_by(|&a, &b| of_words[a].total_cmp(&of_words[b])).unwrap();
        assert!(of_words.len() == 7 && [1, 5].contains(&strongest), "{model}: {of_words:?}");
    }
    place.refuses("heatmap --classifier gru --text great --head 0", &["--head: means nothing to gru"]);
    place.refuses("heatmap --classifier head-attention --text great --head 2", &["--head 2"]);
}
