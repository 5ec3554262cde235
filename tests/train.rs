//! `attn train lm`, `eval lm` and `generate` from outside: what they write, and what they refuse.

#[path = "common/place.rs"]
mod place;

use place::{Place, same_files};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;

const SMALL: &str = "--batch-size 4 --save-every 0";
const WEIGHTS: [&str; 2] = ["model.safetensors", "optimizer.safetensors"];

#[test]
fn a_resumed_run_continues_bit_for_bit() {
    let place = Place::new();
    place.attn(&format!("train lm {SMALL} --steps 6 --out whole"));
    place.attn(&format!("train lm {SMALL} --steps 4 --out parts"));
    // As if it had gone on and crashed before its next checkpoint.
    let log = place.path("parts/log.jsonl");
    let crashed = fs::read_to_string(&log).unwrap() + "{\"step\":5,\"loss\":1.0}\n{\"step\":6,\"lo";
    fs::write(&log, crashed).unwrap();
    place.attn("train lm --resume parts --steps 6");
    same_files(&place.path("whole"), &place.path("parts"), &WEIGHTS);
    assert_eq!(place.losses("whole"), place.losses("parts"));
    let rows = place.rows("whole");
    assert_eq!(rows.iter().filter(|r| r["loss"].is_number()).count(), 6);
    let last = rows.last().unwrap();
    assert_eq!(last["step"], 6);
    let (loss, perplexity) = (last["val_loss"].as_f64().unwrap(), last["val_perplexity"].as_f64().unwrap());
    assert!((loss.exp() - perplexity).abs() < 1e-9);
    for key in ["step", "loss", "lr", "tokens_per_s"] {
        assert!(rows[0][key].is_number(), "{key}");
    }
}

#[test]
fn resuming_elsewhere_leaves_the_first_run_as_it_was() {
    let place = Place::new();
    place.attn(&format!("train lm {SMALL} --steps 2 --out first"));
    place.attn("train lm --resume first --steps 3 --out second");
    assert_eq!((place.losses("first").len(), place.losses("second").len()), (2, 3));
    place.refuses("train lm --resume first", &["--steps 2: 2 have been done already"]);
    place.refuses("train lm --resume first --steps 9 --lr 1", &["--lr 1.0: the run to resume has 0.0005"]);
    place.refuses("train lm --resume second --out first", &["first: is not empty", "--overwrite"]);
    place.refuses("train lm --resume nowhere", &["nowhere: holds no run to resume"]);
}

#[test]
fn learns_addition() {
    let place = Place::new();
    place.attn("train lm --batch-size 32 --steps 80 --lr 1e-2 --dropout 0 --out run");
    let losses: Vec<f64> = place.losses("run").into_iter().map(f64::from_bits).collect();
    assert!((losses[0] - 13f64.ln()).abs() < 0.1, "{}", losses[0]);
    let last: f64 = losses[70..].iter().sum::<f64>() / 10.0;
    assert!(last < 0.6 * losses[0], "{last}");
    let text = place.attn("generate --checkpoint run --prompt 12+34= --tokens 4 --greedy");
    assert!(text.starts_with("12+34=") && text.len() == "12+34=640\n\n".len(), "{text:?}");
}

fn some_text(n: usize) -> String {
    (0..n).map(|i| ["the ", "cat ", "sat ", "é\n"][i * i % 7 % 4]).collect()
}

#[test]
fn a_checkpoint_is_whole_and_evaluates_as_it_trained() {
    let place = Place::new();
    let text = place.text("t.txt", some_text(200));
    place.attn(&format!("train lm --text {text} --block-size 16 {SMALL} --steps 2 --eval-every 1 --out run"));
    let config: Value = serde_json::from_slice(&fs::read(place.path("run/config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["model_type"], &config["n_layer"], &config["n_positions"]),
        (&"gpt2".into(), &3.into(), &16.into())
    );
    assert_eq!(config["tie_word_embeddings"], false);
    let bytes = fs::read(place.path("run/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("transformer.h.2.attn.c_attn.weight").unwrap().shape(), [48, 144]);
    assert_eq!(tensors.tensor("lm_head.weight").unwrap().shape()[1], 48);
    assert_eq!(tensors.len(), 3 + 3 * 12 + 2);

    // The validation split as a text of its own, cut to whole blocks.
    let characters: Vec<char> = some_text(200).chars().collect();
    let validation = &characters[characters.len() * 9 / 10..];
    let whole = (validation.len() - 1) / 16 * 16 + 1;
    let split = place.text("v.txt", validation[..whole].iter().collect::<String>());
    place.attn(&format!("eval lm --checkpoint run --text {split} --json v.json"));
    let found: Value = serde_json::from_slice(&fs::read(place.path("v.json")).unwrap()).unwrap();
    assert_eq!(found["tokens"], whole - 1);
    let trained = place.rows("run").last().unwrap()["val_loss"].as_f64().unwrap();
    assert!((found["loss"].as_f64().unwrap() / trained - 1.0).abs() < 1e-6, "{found} {trained}");
    assert!((found["perplexity"].as_f64().unwrap().ln() - found["loss"].as_f64().unwrap()).abs() < 1e-9);

    // Shorter than a block, and several at once.
    let short = place.text("s.txt", "cat");
    place.attn(&format!("eval lm --checkpoint run --text {short} --text {split} --json rows.json"));
    let rows: Value = serde_json::from_slice(&fs::read(place.path("rows.json")).unwrap()).unwrap();
    assert_eq!((&rows["rows"][0]["tokens"], &rows["rows"][1]["loss"]), (&2.into(), &found["loss"]));

    // Drawn alike from the same seed, past the block size too.
    let line = "generate --checkpoint run --prompt the --tokens 20 --seed 3";
    assert_eq!(place.attn(line), place.attn(line));
    assert_eq!(place.attn(line).chars().count(), 3 + 20 + 1);
}

#[test]
fn starts_from_given_weights() {
    let place = Place::new();
    let text = place.text("t.txt", some_text(100));
    let base = format!("train lm --text {text} --block-size 8 {SMALL} --data-order sequential --dropout 0");
    place.attn(&format!("{base} --steps 1 --seed 5 --out a"));
    fs::create_dir(place.path("init")).unwrap();
    fs::copy(place.path("a/model.safetensors"), place.path("init/model.safetensors")).unwrap();
    place.attn(&format!("{base} --steps 2 --seed 6 --init init --out b"));
    place.attn(&format!("{base} --steps 2 --seed 7 --init a --out c"));
    assert_eq!(place.losses("b"), place.losses("c"));
    assert_ne!(place.losses("a")[0], place.losses("b")[0]);

    let other = base.replace("--block-size 8", "--block-size 9");
    let words = ["init/model.safetensors: tensor `transformer.wpe.weight` has shape [8, 48], expected [9, 48]"];
    place.refuses(&format!("{other} --init init --out d"), &words);
    place.refuses(&format!("{base} --preset gpt-micro --init init --out d"), &["wte.weight` has shape"]);
    place.refuses(&format!("{base} --init t.txt --out d"), &["t.txt: is no valid safetensors file"]);
    let bytes = fs::read(place.path("init/model.safetensors")).unwrap();
    fs::write(place.path("init/model.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
    place.refuses(&format!("{base} --init init --out d"), &["is no valid safetensors file"]);
    assert!(!place.path("d").exists(), "a refused run leaves nothing");
}

#[test]
fn every_attention_variant_trains() {
    let place = Place::new();
    for name in attn_engine::model::gpt::attention_variants() {
        place.attn(&format!("train lm {SMALL} --steps 2 --attention {name} --out {name}"));
        let bytes = fs::read(place.path(name).join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(config["model_type"] == "gpt2", name == "softmax-attention", "{name}");
        place.attn(&format!("generate --checkpoint {name} --prompt 1 --tokens 1"));
    }
}

#[test]
fn bad_texts_are_refused() {
    let place = Place::new();
    let train = |name: &str| format!("train lm --text {name} --block-size 16 --out run");
    place.refuses(&train("missing.txt"), &["missing.txt: cannot be read"]);
    let empty = place.text("empty.txt", "");
    place.refuses(&train(&empty), &["empty.txt: is empty"]);
    let bytes = place.text("bytes.txt", b"ab\xffcd");
    place.refuses(&train(&bytes), &["bytes.txt: is not UTF-8 at byte 2"]);
    let short = place.text("short.txt", "a".repeat(160));
    let words = ["validation split", "short.txt: has 16 tokens", "(17)", "--block-size"];
    place.refuses(&train(&short), &words);
    let enough = place.text("enough.txt", "a".repeat(170));
    place.attn(&format!("{} --steps 1 --batch-size 1", train(&enough)));
    place.refuses(&train(&enough), &["run: is not empty", "--overwrite"]);
    place.attn(&format!("{} --steps 1 --batch-size 1 --overwrite", train(&enough)));

    let one = place.text("one.txt", "a");
    let eval = |name: &str| format!("eval lm --checkpoint run --text {name}");
    place.refuses(&eval(&one), &["one.txt: has fewer than two characters"]);
    let unknown = place.text("unknown.txt", "aa\nb");
    place.refuses(&eval(&unknown), &["unknown.txt: character '\\n' at position 2 (line 1)"]);
    place.refuses("eval lm --checkpoint nowhere --text one.txt", &["nowhere: is no directory"]);
    place.refuses("generate --checkpoint run --prompt b", &["--prompt: character 'b' at position 0"]);
    place.refuses("generate --checkpoint run --prompt a --temperature 0", &["--temperature 0"]);
}

#[test]
fn training_in_16_bits_is_refused_where_it_cannot_be() {
    let place = Place::new();
    place.refuses("train lm --out r --dtype f16", &["--dtype", "f16 needs loss scaling", "use bf16"]);
    place.refuses("train lm --out r --dtype bf16", &["--dtype bf16: needs a GPU or the emulator", "--dtype f32"]);
    assert!(!place.path("r").exists());
    place.attn(&format!("train lm {SMALL} --steps 1 --out f"));
    place.refuses("train lm --resume f --steps 2 --dtype bf16", &["--dtype \"bf16\": the run to resume has \"f32\""]);
}

/// The most that a step's losses of two runs differ by, relatively.
fn largest_difference(place: &Place, a: &str, b: &str) -> f64 {
    let (a, b) = (place.losses(a), place.losses(b));
    assert!(a.len() == b.len() && a != b, "bf16 gives other bits than f32");
    let differences = a.iter().zip(&b).map(|(&a, &b)| (f64::from_bits(a) / f64::from_bits(b) - 1.0).abs());
    differences.fold(0.0, f64::max)
}

/// gpt-nano on a text: 20 steps with bf16 storage lose what 20 in f32 do, and a resumed run goes on bit for bit.
#[test]
fn bf16_on_the_emulator_follows_f32() {
    let place = Place::new();
    let text = place.text("t.txt", some_text(2000));
    let on = |dtype: &str, more: &str| {
        let size = "--preset gpt-nano --block-size 64 --batch-size 8 --lr 3e-3 --dropout 0 --save-every 0";
        place.attn_on("emulator", &format!("train lm --text {text} --dtype {dtype} {size} {more}")).unwrap();
    };
    on("f32", "--steps 20 --out f32");
    on("bf16", "--steps 20 --out bf16");
    let worst = largest_difference(&place, "f32", "bf16");
    println!("largest relative difference of a loss: {worst:.2e}");
    assert!(worst < 0.01, "{worst}");
    let (first, last) = (place.losses("bf16")[0], place.losses("bf16")[19]);
    assert!(f64::from_bits(last) < 0.5 * f64::from_bits(first), "it learned in these steps");

    on("bf16", "--steps 18 --out parts");
    place.attn_on("emulator", "train lm --resume parts --steps 20").unwrap();
    same_files(&place.path("bf16"), &place.path("parts"), &WEIGHTS);
    // Its weights are f32, and evaluate on the CPU as they did while training.
    let trained = place.rows("bf16").last().unwrap()["val_loss"].as_f64().unwrap();
    let characters: Vec<char> = some_text(2000).chars().collect();
    let validation = &characters[characters.len() * 9 / 10..];
    let whole = (validation.len() - 1) / 64 * 64 + 1;
    let split = place.text("v.txt", validation[..whole].iter().collect::<String>());
    place.attn(&format!("eval lm --checkpoint bf16 --text {split} --json v.json"));
    let found: Value = serde_json::from_slice(&fs::read(place.path("v.json")).unwrap()).unwrap();
    assert!((found["loss"].as_f64().unwrap() / trained - 1.0).abs() < 0.01, "{found} {trained}");
}

#[test]
fn bad_flags_are_refused() {
    let place = Place::new();
    place.refuses("train lm", &["--out"]);
    place.refuses("train lm --out r --preset gpt-huge", &["gpt-huge", "gpt-nano"]);
    place.refuses("train lm --out r --attention none", &["none", "softmax-attention"]);
    place.refuses("train lm --out r --lr nan", &["--lr NaN: is out of range"]);
    place.refuses("train lm --out r --dropout 1", &["--dropout 1: is out of range"]);
    place.refuses("train lm --out r --batch-size 0", &["--batch-size"]);
    place.refuses("train lm --out r --steps 0", &["--steps"]);
    place.refuses("train lm --out r --block-size 4000000000", &["block"]);
    place.text("file", "x");
    place.refuses("train lm --out file", &["file: is no directory"]);
    assert!(!place.path("r").exists());
}

/// A run that is interrupted leaves a checkpoint from which it goes on as if nothing had happened.
#[cfg(unix)]
#[test]
fn ctrl_c_writes_a_checkpoint() {
    use std::process::{Command, Stdio};
    let place = Place::new();
    let line = format!("train lm {SMALL} --steps 1000000 --out run --device cpu --threads 1");
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("attn"));
    child.current_dir(place.0.path()).args(line.split_whitespace()).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    let log = place.path("run/log.jsonl");
    while fs::read_to_string(&log).is_ok_and(|t| t.lines().count() < 3) || !log.exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("attn train lm --resume run"), "{message}");
    let steps = place.losses("run").len();
    place.attn(&format!("train lm --resume run --steps {}", steps + 1));
    place.attn(&format!("train lm {SMALL} --steps {} --out whole", steps + 1));
    assert_eq!(place.losses("whole"), place.losses("run"));
    same_files(&place.path("whole"), &place.path("run"), &WEIGHTS);
}
