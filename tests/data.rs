//! Tokenizers, documents, caches of tokens, and evaluation, from outside.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// A folder for a test, and the binary that runs in it.
struct Place(tempfile::TempDir);

/// What one run printed.
struct Said {
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Runs `attn` on the CPU with these arguments, split at spaces but for what stands in single quotes.
    fn run(&self, line: &str, code: i32) -> Said {
        let mut command = Command::cargo_bin("attn").unwrap();
        command.current_dir(self.0.path());
        for (i, part) in line.split('\'').enumerate() {
            match i % 2 {
                0 => command.args(part.split_whitespace()),
                _ => command.arg(part),
            };
        }
        let output = command.args(["--device", "cpu", "--threads", "1"]).assert().code(code).get_output().clone();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(!stderr.contains("panicked"), "{line}: {stderr}");
        Said { stdout, stderr }
    }

    fn attn(&self, line: &str) -> Said {
        self.run(line, 0)
    }

    fn refuses(&self, line: &str, words: &str) {
        let said = self.run(line, 2);
        assert!(said.stderr.contains(words), "{line}: {words:?} is missing in {}", said.stderr);
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn losses(&self, run: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.path(run).join("log.jsonl")).unwrap();
        text.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64()).collect()
    }
}

/// A model small enough for any test.
const TINY: &str = "--layers 1 --heads 2 --width 8 --dropout 0 --save-every 0";

/// Twenty sentences with labels, two of them blank.
fn table() -> String {
    let words = ["the", "cat", "sat", "on", "a", "mat", "and", "slept"];
    let sentence = |i: usize| (0..i % 6 + 1).map(|j| words[(i * i + 3 * j) % 8]).collect::<Vec<_>>().join(" ");
    let line = |i: usize| if i % 10 == 7 { " \n".into() } else { format!("{}\t{}\n", sentence(i), i % 2) };
    (0..20).map(line).collect()
}

const DOCUMENTS: &str = "--documents lines --text-column 1";

#[test]
fn documents_are_learned_and_evaluated_one_by_one() {
    let place = Place::new();
    place.file("train.tsv", table());
    place.file("dev.tsv", "the cat slept\t1\nnobody slept\t0\n\na mat\t1\n");
    let data = format!("--text train.tsv {DOCUMENTS} --tokenizer words --min-count 1 --max-length 6 --batch-size 4");
    let train = format!("train lm {data} --block-size 16 {TINY}");
    let said = place.attn(&format!("{train} --validation-text dev.tsv --epochs 2 --out run"));
    for words in [
        "train.tsv: left out: 2 empty documents",
        "train.tsv: 18 documents, 5 of them cut to 6 tokens (7 tokens left out)",
        "dev.tsv: 1 of 13 words unknown (7.7 %)",
    ] {
        assert!(said.stderr.contains(words), "{words:?} is missing in {}", said.stderr);
    }
    assert_eq!(place.losses("run").len(), 9, "2 × 18 documents, 4 a step");

    // Resumed in the middle of an epoch, in the same order; and with more epochs.
    place.attn(&format!("{train} --validation-text dev.tsv --steps 3 --out parts"));
    place.attn("train lm --resume parts --epochs 2");
    assert_eq!(place.losses("parts"), place.losses("run"));
    place.refuses("train lm --resume parts", "9 have been done already");
    place.refuses("train lm --resume parts --epochs 3 --max-length 5", "--max-length 5: the run to resume has 6");

    // Three figures, of which each can be recomputed from the documents'; whatever the batch.
    let eval = format!("eval lm --checkpoint run --text dev=dev.tsv {DOCUMENTS} --per-document");
    let said = place.attn(&format!("{eval} --batch-size 1,2 --json eval.json --csv eval.csv"));
    assert!(said.stdout.contains("document 3: tokens 3, loss"), "{}", said.stdout);
    let json = place.json("eval.json");
    let rows = json["rows"].as_array().unwrap();
    let of = |row: &Value, key: &str| row[key].as_f64().unwrap();
    let documents: Vec<(f64, f64)> =
        rows[0]["per_document"].as_array().unwrap().iter().map(|d| (of(d, "tokens"), of(d, "loss"))).collect();
    assert_eq!(documents.iter().map(|d| d.0).collect::<Vec<_>>(), [4.0, 3.0, 3.0]);
    let total: f64 = documents.iter().map(|(n, loss)| n * loss).sum();
    let close = |key: &str, expected: f64| {
        for row in rows {
            assert!((of(row, key) / expected - 1.0).abs() < 1e-6, "{key}: {} {expected}", row[key]);
        }
    };
    close("perplexity", (total / 10.0).exp());
    close("mean_document_loss", documents.iter().map(|d| d.1).sum::<f64>() / 3.0);
    close("mean_document_perplexity", documents.iter().map(|d| d.1.exp()).sum::<f64>() / 3.0);
    // Training validated on the same documents.
    let log = fs::read_to_string(place.path("run/log.jsonl")).unwrap();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert!((of(&last, "val_loss") / of(&rows[0], "loss") - 1.0).abs() < 1e-6, "{last}");
    let csv = fs::read_to_string(place.path("eval.csv")).unwrap();
    assert!(
        csv.starts_with("checkpoint,text,batch_size,tokens,loss,perplexity,documents,mean_document_loss,"),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 3);
}

#[test]
fn checkpoints_and_texts_make_a_table() {
    let place = Place::new();
    place.file("t.txt", "low lower lowest\n".repeat(20));
    for (name, attention) in [("base", "softmax-attention"), ("other", "linear-attention")] {
        place.attn(&format!(
            "train lm --text t.txt --block-size 8 --attention {attention} {TINY} --steps 1 --out {name}"
        ));
    }
    let samples = "--text t.txt --sentence 'short=low' --sentence 'long=low lower low lower low'";
    let said = place.attn(&format!(
        "eval lm --checkpoint base --checkpoint other {samples} --batch-size 1,3 --documents lines --json rows.json"
    ));
    let json = place.json("rows.json");
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2 * 3 * 2);
    for pair in rows.chunks(2) {
        let [one, three] = [0, 1].map(|i| pair[i]["loss"].as_f64().unwrap());
        assert!((one / three - 1.0).abs() < 1e-6, "neither model's rows depend on each other: {pair:?}");
        assert_eq!((&pair[0]["batch_size"], &pair[1]["batch_size"]), (&1.into(), &3.into()));
    }
    assert_eq!((&rows[2]["text"], &rows[2]["tokens"], &rows[4]["tokens"]), (&"short".into(), &2.into(), &22.into()));
    let lines: Vec<&str> = said.stdout.lines().collect();
    let title = lines.iter().position(|l| l.contains("long, batch 3")).unwrap();
    assert!(lines[title + 1].contains("base") && lines[title + 2].contains("other"), "{}", said.stdout);
}

/// With weights from norms over the batch, a sentence's loss depends on its batch; without weighting it does not.
#[test]
fn a_weighting_of_heads_can_be_turned_off() {
    let place = Place::new();
    place.file("t.txt", "low lower lowest\n".repeat(20));
    let merge = "--head-merge reweight --norm-scope batch --norm-weight raw";
    place.attn(&format!("train lm --text t.txt --block-size 8 {merge} {TINY} --steps 5 --lr 1e-2 --out run"));
    let losses = |flags: &str| {
        let samples = "--text t.txt --sentence 'short=low' --batch-size 1,4 --documents lines";
        place.attn(&format!("eval lm --checkpoint run {samples} {flags} --json rows.json"));
        let rows = place.json("rows.json")["rows"].clone();
        [2, 3].map(|i| rows[i]["loss"].as_f64().unwrap())
    };
    let ([alone, together], [plain, beside]) = (losses(""), losses("--head-merge concat"));
    assert!((alone / together - 1.0).abs() > 1e-6, "{alone} {together}");
    assert!((plain / beside - 1.0).abs() < 1e-6 && (plain / alone - 1.0).abs() > 1e-6, "{plain} {beside} {alone}");
}

/// Two windows of four, a stride of 1 apart: the second counts its last prediction only.
#[test]
fn windows_slide_over_a_long_text() {
    let place = Place::new();
    place.file("t.txt", "abcabcbacbcabcacbacb".repeat(4));
    place.attn(&format!("train lm --text t.txt --block-size 4 {TINY} --steps 20 --lr 1e-2 --out run"));
    let total = |text: &str, more: &str| -> (f64, f64) {
        place.file("e.txt", text);
        place.attn(&format!("eval lm --checkpoint run --text e.txt {more} --json e.json"));
        let json = place.json("e.json");
        let tokens = json["tokens"].as_f64().unwrap();
        (tokens, tokens * json["loss"].as_f64().unwrap())
    };
    let (tokens, slid) = total("abcabc", "--stride 1");
    assert_eq!(tokens, 5.0);
    let expected = total("abcab", "").1 + total("bcabc", "").1 - total("bcab", "").1;
    assert!((slid - expected).abs() < 1e-5, "{slid} {expected}");
    let side_by_side = total("abcab", "").1 + total("bc", "").1;
    assert!((total("abcabc", "").1 - side_by_side).abs() < 1e-5);
    place.refuses("eval lm --checkpoint run --text e.txt --stride 5", "--stride 5: leaves tokens out");
}

#[test]
fn a_damaged_cache_is_noticed_and_replaced() {
    let place = Place::new();
    place.file("t.txt", "some text to learn, ".repeat(30));
    let train = format!("train lm --text t.txt --tokenizer bpe --vocab-size 270 --block-size 8 {TINY}");
    place.attn(&format!("{train} --steps 4 --out whole"));
    place.attn(&format!("{train} --steps 2 --out run"));
    let cache = place.path("run/tokens.safetensors");
    let good = fs::read(&cache).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&cache, &bad).unwrap();
    let said = place.attn("train lm --resume run --steps 3");
    let words = "run/tokens.safetensors: does not have the digest that its header names; encoding the text anew";
    assert!(said.stderr.contains(words), "{}", said.stderr);
    assert_eq!(fs::read(&cache).unwrap(), good);
    let said = place.attn("train lm --resume run --steps 4");
    assert!(!said.stderr.contains("anew"), "{}", said.stderr);
    assert_eq!(place.losses("run"), place.losses("whole"));
    let text = place.attn("generate --checkpoint run --prompt 'some ☕' --tokens 3 --greedy").stdout;
    assert!(text.starts_with("some ☕"), "any text is known as bytes: {text}");

    // Its tokenizer by name: the same tokens, and so the same losses.
    let again = train.replace("bpe --vocab-size 270", "whole/tokenizer.json");
    place.attn(&format!("{again} --steps 4 --out again"));
    assert_eq!(place.losses("again"), place.losses("whole"));
    // A text that changed is refused, and a refused run leaves nothing.
    place.file("t.txt", "another text".repeat(30));
    place.refuses("train lm --resume run --steps 5", "t.txt: has changed since the run began");
    place.refuses(
        &format!("{train} --steps 1 --init whole --tokenizer characters --out new"),
        "cannot be used multiple",
    );
    let other = train.replace("bpe --vocab-size 270", "characters");
    place.refuses(&format!("{other} --steps 1 --init whole --out new"), "wte.weight");
    assert!(!place.path("new").exists());
    let left: Vec<_> = fs::read_dir(place.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn flags_that_do_not_fit_are_refused() {
    let place = Place::new();
    place.file("t.txt", "one two three\n".repeat(40));
    let train = |more: &str| format!("train lm --text t.txt --block-size 8 {TINY} --steps 1 {more} --out run");
    for (flags, words) in [
        ("--min-count 2", "--min-count: has no meaning without --tokenizer words"),
        ("--vocab-size 300", "--vocab-size: has no meaning without --tokenizer bpe"),
        ("--vocab-size 257 --tokenizer bpe", "--vocab-size"),
        ("--text-column 1", "--text-column: has no meaning without --documents lines"),
        ("--max-length 4", "--max-length: has no meaning without --documents lines"),
        ("--documents lines --max-length 10", "--max-length 10: gives rows of 9 tokens, more than --block-size 8"),
        ("--documents lines --text-column label", "t.txt: has no column \"label\" in its first line: one two three"),
        ("--documents lines --text-column 2", "t.txt: line 1 has 1 columns, --text-column is 2"),
        ("--tokenizer wordss", "wordss: does not exist"),
        ("--tokenizer words --min-count 99", "--min-count 99: no word of t.txt occurs so often"),
        ("--validation-text none.txt", "none.txt: cannot be read"),
        ("--epochs 1", "--epochs"),
    ] {
        place.refuses(&train(flags), words);
    }
    place
        .refuses(&format!("train lm {TINY} --tokenizer words --out run"), "--tokenizer: has no meaning without --text");
    place.file("v.txt", "one, two");
    place.refuses(&train("--validation-text v.txt"), "v.txt: character ',' at position 3 (line 1)");
    assert!(!place.path("run").exists());
    place.attn(&train(""));
    let eval = |more: &str| format!("eval lm --checkpoint run --text t.txt {more}");
    place.refuses(&eval("--per-document"), "--per-document: has no meaning without --documents lines");
    place.refuses(&eval("--text t.txt"), "the name \"t.txt\": stands for two texts");
    place.refuses(&eval("--sentence word"), "--sentence \"word\": has no name");
    place.refuses(&eval("--sentence a="), "--sentence a: has fewer than two characters");
    place.refuses(&eval("--batch-size 1,0"), "--batch-size");
}
