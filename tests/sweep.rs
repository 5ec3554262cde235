//! `attn train lm --sweep` from outside.

#[path = "common/place.rs"]
mod place;

use place::Place;
use serde_json::Value;
use std::fs;

const SWEEP: &str = r#"
[base]
steps = 3
batch-size = 2
save-every = 2
dropout = 0.0
data-order = "sequential"

[grid]
lr = [1e-2, 1e-9]

[[run]]
name = "adamw"

[[run]]
name = "sgd"
optimizer = "sgd"
eager = true
"#;

fn json(place: &Place, file: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(file)).unwrap()).unwrap()
}

#[test]
fn runs_all_combinations_once_and_names_the_best() {
    let place = Place::new();
    place.text("s.toml", SWEEP);
    let said = place.attn("train lm --sweep s.toml --out all");
    let names = ["adamw,lr=0.01", "adamw,lr=0.000000001", "sgd,lr=0.01", "sgd,lr=0.000000001"];
    assert!(names.iter().all(|name| said.contains(name)), "{said}");
    assert!(said.contains("best: adamw,lr=0.01, val_loss "), "{said}");
    let found = json(&place, "all/sweep.json");
    let runs = found["runs"].as_array().unwrap();
    assert_eq!(runs.iter().map(|r| r["run"].as_str().unwrap()).collect::<Vec<_>>(), names);
    assert_eq!(found["best"], names[0]);
    for run in runs {
        let name = run["run"].as_str().unwrap();
        let last = place.rows(&format!("all/{name}")).last().unwrap()["val_loss"].clone();
        assert_eq!((&run["val_loss"], &run["steps"]), (&last, &3.into()));
    }
    assert_eq!(fs::read_to_string(place.path("all/sweep.csv")).unwrap().lines().count(), 5);
    assert!(place.path("all/curves.svg").exists() && place.path("all/curves.png").exists());

    // A run of it is what the same flags give alone.
    place.attn(
        "train lm --steps 3 --batch-size 2 --dropout 0 --data-order sequential --lr 1e-2 --optimizer sgd --out one",
    );
    assert_eq!(place.losses("one"), place.losses("all/sgd,lr=0.01"));

    // Cut short in one run, and before another: the rest is not trained again.
    let log = |name: &str| place.path(&format!("all/{name}/log.jsonl"));
    let times = || names.map(|name| fs::metadata(log(name)).unwrap().modified().unwrap());
    let before = times();
    let training = place.path("all/sgd,lr=0.01/training.json");
    fs::remove_file(place.path("all/adamw,lr=0.000000001/training.json")).unwrap();
    let mut state: Value = serde_json::from_slice(&fs::read(&training).unwrap()).unwrap();
    state["step"] = 2.into();
    fs::write(&training, state.to_string()).unwrap();
    place.attn("train lm --sweep s.toml --out all");
    let after = times();
    assert_eq!([0, 1, 2, 3].map(|i| before[i] == after[i]), [true, false, false, true]);
    let again = json(&place, "all/sweep.json");
    for i in 0..4 {
        assert_eq!(again["runs"][i]["steps"], 3);
        // The third goes on from weights of three steps as if they were of two.
        assert_eq!(again["runs"][i]["val_loss"] == found["runs"][i]["val_loss"], i != 2);
    }
}

#[test]
fn mistakes_are_named_before_anything_runs() {
    let place = Place::new();
    for (text, words) in [
        ("[base]\nlrr = 1", &["s.toml: [base] has `lrr`, which is no flag"][..]),
        ("[grid]\nlr = 1e-3", &["[grid] `lr` is no list"]),
        ("[base]\nlr = [1e-3]\n[[run]]\nname='a'", &["`lr` must be one value here", "[grid]"]),
        ("[base]\nsteps = 1", &["describes no run"]),
        ("[[run]]\nsteps = 1", &["[[run]] number 1 has no name"]),
        ("[[run]]\nname = '../x'", &["[[run]] number 1 has no name"]),
        ("[[run]]\nname = 'a'\n[[run]]\nname = 'a'", &["describes the run `a` twice"]),
        ("[grid]\nlr = [1.0]\n[[run]]\nname = 'a'\nlr = 2.0", &["`a` sets `lr`, and so does [grid]"]),
        ("[base]\nout = 'x'\n[[run]]\nname = 'a'", &["`out`, which the sweep decides"]),
        ("[grids]\nlr = [1.0]", &["has `grids`, which is no part of a sweep"]),
        ("[base]\nsteps = 1\n[base", &["is no TOML: line 3"]),
        ("[[run]]\nname = 'a'\nsteps = 'many'", &["run `a`: invalid value 'many' for '--steps <N>'"]),
        ("[[run]]\nname = 'a'\nlr = -1.0", &["run `a`: --lr -1: is out of range"]),
    ] {
        place.text("s.toml", text);
        place.refuses("train lm --sweep s.toml --out all", words);
        assert!(!place.path("all").exists(), "{text}");
    }
    place.refuses("train lm --sweep none.toml --out all", &["none.toml: cannot be read"]);
    place.refuses("train lm --sweep s.toml", &["--out"]);
    place.refuses("train lm --sweep s.toml --out all --lr 1", &["--lr", "cannot be used with"]);
}

/// A run that fails does not keep the others from being made.
#[test]
fn a_run_that_fails_is_reported() {
    let place = Place::new();
    place.text(
        "s.toml",
        "[base]\nsteps = 1\nbatch-size = 2\n[[run]]\nname = 'a'\ntext = 'none.txt'\n[[run]]\nname = 'b'",
    );
    place.refuses("train lm --sweep s.toml --out all", &["1 of 2 runs failed, first `a`: none.txt: cannot be read"]);
    let found = json(&place, "all/sweep.json");
    assert!(found["runs"][0]["error"].as_str().unwrap().contains("none.txt"));
    assert!(found["runs"][1]["val_loss"].is_number() && found["best"] == "b");
}
