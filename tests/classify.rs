//! Classifiers: what padding and batching may not change, runs that go on, and what a user meets.

use assert_cmd::Command;
use attn_engine::cpu::Cpu;
use attn_engine::data::{SpecialTokens, Splitter};
use attn_engine::model::classifier::{Classifier, ClassifierConfig, ModelName, Padding, Plans, Pool, Recorded};
use std::path::Path;
use std::sync::Arc;

const MODELS: [ModelName; 8] = [
    ModelName::MeanLogreg,
    ModelName::MeanFfnn,
    ModelName::BowLogreg,
    ModelName::SelfAttention,
    ModelName::HeadAttention,
    ModelName::Gru,
    ModelName::Rnn,
    ModelName::Transformer,
];

fn config(model: ModelName) -> ClassifierConfig {
    ClassifierConfig {
        model,
        labels: vec!["neg".into(), "pos".into()],
        vocabulary: 23,
        width: if model == ModelName::BowLogreg { 0 } else { 6 },
        freeze_embeddings: false,
        hidden: if model == ModelName::MeanFfnn { vec![5] } else { vec![] },
        heads: 2,
        freeze_heads: false,
        key_width: 4,
        pool: Pool::Tokens,
        padding: Padding::Masked,
        pad_row: 0,
        positions: model == ModelName::HeadAttention,
        max_length: 40,
        layers: 2,
        units: 3,
        bidirectional: true,
        attention: "softmax-attention".into(),
        dropout: 0.0,
        counts: true,
        tokenizer: Splitter::Words,
        lowercase: false,
        special: SpecialTokens::default(),
    }
}

/// Texts of lengths 0, 1, 3, 9 and 17, which fall into different plans.
fn texts() -> Vec<(Vec<i32>, u32)> {
    let text = |(i, length): (usize, usize)| {
        ((0..length).map(|t| ((t * t + 7 * i + 3 * t) % 23) as i32).collect(), (i % 2) as u32)
    };
    [1, 17, 3, 0, 9].into_iter().enumerate().map(text).collect()
}

/// The mean loss of rows, and the gradients of all parameters.
fn gradients(plans: &mut Plans, texts: &[(Vec<i32>, u32)]) -> (f64, Vec<f64>) {
    let rows: Vec<(&[i32], Option<u32>)> = texts.iter().map(|(row, class)| (&row[..], Some(*class))).collect();
    let plan = plans.write(&rows, (0, 0)).unwrap();
    plan.forward().unwrap();
    plan.backward().unwrap();
    let all = plan.graph().parameters().into_iter().flat_map(|t| plan.read_gradient(t).unwrap()).collect();
    (plans.loss().unwrap(), all)
}

fn plans(config: &ClassifierConfig, batch: usize, longest: usize) -> Plans {
    let plans = Plans::new(config, batch, longest, Some(0), Arc::new(Cpu::<f64>::new(1))).unwrap();
    Recorded::initialize(plans.initial(), plans.plan(), 3).unwrap();
    plans
}

/// A text's gradient is the same alone, in a plan that just holds it, and among others with padding behind it.
#[test]
fn batches_of_one_and_of_many_give_the_same_gradients() {
    for model in MODELS {
        let (config, texts) = (config(model), texts());
        let (loss, together) = gradients(&mut plans(&config, 7, 33), &texts);
        let mut alone = plans(&config, 1, 1);
        let (mut mean_loss, mut mean) = (0.0, vec![0.0; together.len()]);
        for text in &texts {
            let (loss, gradient) = gradients(&mut alone, std::slice::from_ref(text));
            mean_loss += loss / texts.len() as f64;
            mean.iter_mut().zip(gradient).for_each(|(m, g)| *m += g / texts.len() as f64);
        }
        let error = mean.iter().zip(&together).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!((loss - mean_loss).abs() < 1e-12 && error < 1e-12, "{model:?}: {loss} {mean_loss}, {error:.1e}");
        assert!(together.iter().any(|g| g.abs() > 1e-3), "{model:?} has gradients");
    }
}

/// The padding's row of the table is that of a word which does not occur: its gradient is exactly zero.
#[test]
fn padding_has_no_gradient() {
    for model in MODELS.into_iter().filter(|m| *m != ModelName::BowLogreg) {
        let config = config(model);
        let texts = [(vec![5, 6, 7], 1), (vec![8, 9, 8, 9, 10, 11, 12, 5, 6, 7, 8], 0)];
        let mut plans = plans(&config, 4, 20);
        gradients(&mut plans, &texts);
        let plan = plans.plan();
        let table = plans.embedding().unwrap();
        let rows: Vec<(&[i32], Option<u32>)> = texts.iter().map(|(row, class)| (&row[..], Some(*class))).collect();
        let gradient = plan.read_gradient(table).unwrap();
        assert!(gradient[..6].iter().all(|&g| g == 0.0), "{model:?}: {:?}", &gradient[..6]);
        assert!(gradient[5 * 6..6 * 6].iter().any(|&g| g != 0.0), "{model:?}");
        // Nor does it change what the model says: another row there, another vector of it.
        plans.write(&rows, (0, 0)).unwrap().forward().unwrap();
        let before = plans.probabilities().unwrap();
        let mut values = plans.plan().read(table).unwrap();
        values[..6].fill(1e3);
        plans.plan().write(table, &values).unwrap();
        plans.write(&rows, (0, 0)).unwrap().forward().unwrap();
        assert_eq!(before[..4], plans.probabilities().unwrap()[..4], "{model:?}");
    }
}

/// Zeroed padding is the padding's row, seen as any other word's, up to the batch's longest text.
#[test]
fn zeroed_padding_is_words() {
    for (model, pool) in [(ModelName::HeadAttention, Pool::Tokens), (ModelName::SelfAttention, Pool::Features)] {
        let masked = ClassifierConfig { pool, max_length: 20, ..config(model) };
        let zeroed = ClassifierConfig { padding: Padding::Zeroed, pad_row: 4, ..masked.clone() };
        let said = |config: &ClassifierConfig, rows: &[&[i32]]| {
            let mut plans = plans(config, 2, 20);
            let rows: Vec<(&[i32], Option<u32>)> = rows.iter().map(|row| (*row, None)).collect();
            plans.write(&rows, (0, 0)).unwrap().forward().unwrap();
            plans.probabilities().unwrap()[..2].to_vec()
        };
        let (short, long) = ([5, 6, 7], [8, 9, 8, 9, 10]);
        let places = if pool == Pool::Features { 20 } else { long.len() };
        let mut padded = short.to_vec();
        padded.resize(places, 4);
        assert_eq!(said(&zeroed, &[&short, &long]), said(&masked, &[&padded, &long]), "{model:?}");
        assert_ne!(said(&zeroed, &[&short, &long]), said(&masked, &[&short, &long]), "{model:?}");
    }
}

/// Plans that share parameters see each other's changes.
#[test]
fn plans_of_all_lengths_have_the_same_parameters() {
    let config = config(ModelName::Gru);
    let mut plans = plans(&config, 2, 30);
    let texts = texts();
    let bytes = plans.plan().peak_bytes();
    let before = gradients(&mut plans, &texts[..1]).0;
    let beside = plans.beside(3, 5).unwrap();
    let t = plans.plan().graph().parameters()[0];
    plans.plan().write(t, &vec![0.0; plans.plan().graph().spec(t).numel()]).unwrap();
    assert!(beside.plan().read(t).unwrap().iter().all(|&x| x == 0.0));
    assert!((gradients(&mut plans, &texts[..1]).0 - before).abs() > 1e-9);
    assert!(beside.plan().peak_bytes() < bytes / 2, "{} of {bytes}", beside.plan().peak_bytes());
}

/// 60 little reviews, told by one word each.
fn table(from: usize, to: usize) -> String {
    let (good, bad) = (["great", "fine", "lovely"], ["awful", "poor", "dull"]);
    let review = |i: usize| {
        let (label, word) = if i.is_multiple_of(2) { ("pos", good[i / 2 % 3]) } else { ("neg", bad[i / 2 % 3]) };
        let more = ["indeed", "so very", "and long"][i % 3];
        format!("{i}\t{label}\tThis film is {more} {word} .\n")
    };
    (from..to).map(review).collect()
}

fn attn(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.current_dir(folder).args(["train", "classify", "--device", "cpu", "--threads", "1"]);
    command
}

fn tables() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("train.tsv"), table(0, 60)).unwrap();
    std::fs::write(folder.path().join("dev.tsv"), table(60, 80)).unwrap();
    folder
}

const DATA: [&str; 8] = ["--train", "train.tsv", "--dev", "dev.tsv", "--text-column", "3", "--label-column", "2"];

/// Every model learns it, and what is on disk predicts as what was trained.
#[test]
fn every_model_learns_and_predicts() {
    let folder = tables();
    for model in MODELS {
        let name = model.name();
        let mut command = attn(folder.path());
        command.args(["--model", name, "--out", name, "--epochs", "12", "--lr", "0.02", "--batch-size", "4"]);
        command.args(["--best-by", "loss"]).args(DATA);
        let run = if model == ModelName::BowLogreg { &mut command } else { command.args(["--dim", "12"]) };
        let output = run.assert().success().get_output().stdout.clone();
        let output = String::from_utf8(output).unwrap();
        assert!(output.contains("accuracy 100.00 %"), "{name}: {output}");
        let best = folder.path().join(name).join("best");
        let mut classifier = Classifier::open(&best, Arc::new(Cpu::<f32>::new(1))).unwrap();
        assert_eq!(classifier.labels(), ["neg", "pos"]);
        let said = classifier.predict(&["This film is indeed great .", "This film is and long dull .", ""]).unwrap();
        assert_eq!((said[0].class, said[1].class), (1, 0), "{name}: {said:?}");
        assert!(said.iter().all(|p| (p.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-6));
        let sums: Vec<f64> = said[0].weights.iter().map(|head| head.iter().sum()).collect();
        assert_eq!(sums.len(), if model == ModelName::HeadAttention { 4 } else { 0 });
        assert!(sums.iter().all(|s| (s - 1.0).abs() < 1e-5));
    }
}

/// Three epochs, and two more after a pause, are five.
#[test]
fn a_resumed_run_is_the_same_run() {
    let folder = tables();
    let train = |out: &str, epochs: &str| {
        let mut command = attn(folder.path());
        command.args(["--model", "head-attention", "--dim", "5", "--dropout", "0.3", "--batch-size", "7"]);
        command.args(["--log-every", "4", "--out", out, "--epochs", epochs]).args(DATA).assert().success();
    };
    train("whole", "5");
    train("parts", "3");
    attn(folder.path()).args(["--resume", "parts", "--epochs", "5"]).assert().success();
    for file in ["model.safetensors", "optimizer.safetensors", "best/model.safetensors"] {
        let read = |out: &str| std::fs::read(folder.path().join(out).join(file)).unwrap();
        assert!(read("whole") == read("parts"), "{file}");
    }
    let rows = |out: &str| -> Vec<(u64, Option<f64>, Option<f64>)> {
        let log = std::fs::read_to_string(folder.path().join(out).join("log.jsonl")).unwrap();
        let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let of = |v: serde_json::Value| (v["step"].as_u64().unwrap(), v["loss"].as_f64(), v["dev_loss"].as_f64());
        log.lines().map(|line| of(row(line))).collect()
    };
    assert_eq!(rows("whole"), rows("parts"));
    assert!(rows("whole").len() > 10);
}

/// Mistakes are named, with what to do, and nothing is written.
#[test]
fn mistakes_are_named() {
    let folder = tables();
    std::fs::write(folder.path().join("other.tsv"), "1\tmixed\tSo so.\n").unwrap();
    std::fs::write(folder.path().join("recipe.toml"), "model = \"gru\"\nlearning-rate = 1\n").unwrap();
    for (arguments, expected) in [
        (&["--model", "mean-logreg", "--heads", "3"][..], "--heads 3: means nothing to --model mean-logreg"),
        (&["--model", "gru", "--units", "0"], "--units 0"),
        (&["--model", "gru", "--lr=-1"], "--lr -1: is out of range"),
        (&["--model", "gru", "--momentum", "0.5"], "--momentum 0.5: means nothing to --optimizer adam"),
        (&["--model", "transformer", "--dim", "10", "--heads", "3"], "--heads 3: does not divide"),
        (&["--model", "transformer", "--attention", "none"], "--attention none: is no attention variant"),
        (&["--model", "gru", "--dev", "other.tsv"], "mixed"),
        (&["--model", "gru", "--examples", "61"], "--examples 61"),
        (&["--model", "gru", "--dev", "nowhere.tsv"], "nowhere.tsv"),
        (&["--recipe", "recipe.toml"], "recipe.toml: is wrong in line 2"),
        (&["--epochs", "3"], "--model: is missing"),
    ] {
        let data = DATA.chunks(2).filter(|pair| !arguments.contains(&pair[0])).flatten();
        let output = attn(folder.path()).args(["--out", "out"]).args(data).args(arguments).assert().code(2);
        let error = String::from_utf8(output.get_output().stderr.clone()).unwrap();
        assert!(error.contains(expected), "{arguments:?}: {error}");
        assert!(!folder.path().join("out").exists(), "{arguments:?}");
    }
}

/// Runs side by side leave a table and a plot; the best of them reads the test table.
#[test]
fn learning_curves_and_sweeps() {
    let folder = tables();
    std::fs::write(folder.path().join("test.tsv"), table(80, 90)).unwrap();
    let data = |command: &mut Command| {
        command.args(["--test", "test.tsv", "--model", "bow-logreg", "--epochs", "3", "--lr", "0.05"]).args(DATA);
    };
    let mut command = attn(folder.path());
    command.args(["--examples", "6,30", "--out", "curve"]);
    data(&mut command);
    let output = String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap();
    assert_eq!(output.matches("test: ").count(), 1, "{output}");
    let read = |file: &str| std::fs::read_to_string(folder.path().join(file)).unwrap();
    let rows = read("curve/runs.csv");
    assert!(rows.contains("\"examples=6\",6,3.00") && rows.contains("\"examples=30\",30,3.00"), "{rows}");
    assert!(folder.path().join("curve/curves.png").exists());

    std::fs::write(
        folder.path().join("sweep.toml"),
        "[base]\nbatch-size = 5\n[grid]\noptimizer = [\"adam\", \"sgd\"]\n[[run]]\nname = \"binary\"\ncounts = false\n",
    )
    .unwrap();
    let mut command = attn(folder.path());
    command.args(["--sweep", "sweep.toml", "--out", "sweep"]);
    data(&mut command);
    let output = String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap();
    assert_eq!((output.matches("test: ").count(), output.matches("best: ").count()), (1, 1), "{output}");
    for name in ["optimizer=adam", "optimizer=sgd", "binary"] {
        assert!(read("sweep/runs.csv").contains(name) && folder.path().join("sweep").join(name).is_dir(), "{name}");
    }
    let stored: serde_json::Value = serde_json::from_str(&read("sweep/binary/training.json")).unwrap();
    assert_eq!((&stored["settings"]["counts"], &stored["settings"]["batch-size"]), (&false.into(), &5.into()));

    // The same command again trains nothing that is there, makes anew what is not, and finds the same.
    let without_seconds = |rows: String| -> Vec<Vec<String>> {
        let cells =
            |row: &str| row.split(',').enumerate().filter(|(i, _)| *i != 3).map(|(_, cell)| cell.into()).collect();
        rows.lines().map(cells).collect()
    };
    let before = without_seconds(read("sweep/runs.csv"));
    std::fs::remove_dir_all(folder.path().join("sweep/binary")).unwrap();
    let again = |more: &[&str]| {
        let mut command = attn(folder.path());
        command.args(["--sweep", "sweep.toml", "--out", "sweep"]).args(more);
        data(&mut command);
        command
    };
    let output = again(&[]).assert().success().get_output().clone();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told.matches("epoch 3:").count(), 1, "{told}");
    assert_eq!(without_seconds(read("sweep/runs.csv")), before);
    // Other settings are not taken for these.
    let output = again(&["--dropout", "0.5"]).assert().code(2).get_output().clone();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--dropout 0.5: the run to resume has the default"), "{error}");
    // A setting that all share, and not each model has a use for.
    std::fs::write(
        folder.path().join("models.toml"),
        "[base]\ndim = 7\n[[run]]\nname = \"bag\"\n[[run]]\nname = \"mean\"\nmodel = \"mean-logreg\"\n",
    )
    .unwrap();
    let mut command = attn(folder.path());
    command.args(["--sweep", "models.toml", "--out", "models"]);
    data(&mut command);
    command.assert().success();
    let settings = |run: &str| read(&format!("models/{run}/training.json"));
    assert!(!settings("bag").contains("\"dim\": 7") && settings("mean").contains("\"dim\": 7"));
    // One that has more to do goes on from its checkpoint.
    let longer = read("sweep.toml").replace("[base]", "[base]\nepochs = 4");
    std::fs::write(folder.path().join("sweep.toml"), longer).unwrap();
    let told = String::from_utf8(again(&[]).assert().success().get_output().stderr.clone()).unwrap();
    assert_eq!((told.matches("epoch 3:").count(), told.matches("epoch 4:").count()), (0, 3), "{told}");
    let output = again(&["--overwrite"]).assert().success().get_output().clone();
    assert_eq!(String::from_utf8(output.stderr).unwrap().matches("epoch 3:").count(), 3);
}

/// The published settings are flags that exist and go together.
#[test]
fn recipes_run() {
    let folder = tables();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    for name in ["mean-logreg", "mean-ffnn", "bow-logreg", "self-attention", "head-attention"] {
        let mut command = attn(folder.path());
        command.arg("--recipe").arg(recipes.join(name).with_extension("toml"));
        command.args(["--out", name, "--epochs", "1"]).args(DATA).assert().success();
        let log = std::fs::read_to_string(folder.path().join(name).join("log.jsonl")).unwrap();
        assert_eq!(log.matches("dev_f1").count(), 1, "{name}: {log}");
    }
}
