//! `attn embed` from outside: vectors that others read, and mistakes.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::cargo_bin("attn").unwrap();
    command.current_dir(folder).args(line.split_whitespace());
    command
}

fn attn(folder: &Path, line: &str) -> String {
    let output = command(folder, line).assert().success();
    String::from_utf8(output.get_output().stdout.clone()).unwrap()
}

fn refuses(folder: &Path, line: &str, words: &str) {
    let output = command(folder, line).assert().code(2);
    let said = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(said.contains(words) && !said.contains("panicked"), "{line}: {words:?} is missing in {said}");
}

/// Two sorts of sentences, with words of their own.
fn sentences() -> String {
    let words = [["Cat", "dog", "cow", "hen"], ["red", "blue", "green", "pink"]];
    let word = |i: usize, j: usize| words[i % 2][(i * 7 + j * j + j * i / 3) % 4];
    (0..400).map(|i| (0..7).map(|j| word(i, j)).collect::<Vec<_>>().join(" ") + "\n").collect()
}

#[test]
fn vectors_are_learned_written_and_asked() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("t.txt"), sentences()).unwrap();
    let table: String = sentences().lines().map(|line| format!("1\t{line}\n")).collect();
    fs::write(at.join("t.tsv"), table).unwrap();
    let train = "embed train --lowercase --dim 12 --epochs 20 --subsample 0 --threads 1";
    let said = attn(at, &format!("{train} --text t.txt --out a"));
    assert!(said.starts_with("8 vectors of 12 numbers: loss "), "{said}");
    attn(at, &format!("{train} --text t.tsv --text-column 2 --out b"));
    for name in ["word2vec.pt", "word_to_index.txt", "index_to_word.txt"] {
        let [a, b] = ["a", "b"].map(|run| fs::read(at.join(run).join(name)).unwrap());
        assert!(a == b, "{name}: a table's texts are the lines of a text");
    }
    let json = |name: &str| -> Value { serde_json::from_slice(&fs::read(at.join(name)).unwrap()).unwrap() };
    let (rows, words) = (json("a/word_to_index.txt"), json("a/index_to_word.txt"));
    assert!(rows.as_object().unwrap().iter().all(|(word, row)| words[row.to_string()] == *word));

    let said = attn(at, "embed nearest cat red --vectors a --count 3 --json n.json");
    let found = json("n.json");
    for (row, alike) in [(0, ["cow", "dog", "hen"]), (1, ["blue", "green", "pink"])] {
        let mut names: Vec<&str> =
            found["rows"][row]["nearest"].as_array().unwrap().iter().map(|n| n["word"].as_str().unwrap()).collect();
        assert!(names.iter().all(|name| said.contains(name)));
        names.sort();
        assert_eq!(names, alike);
    }
    // The same vectors, found by their parts.
    let same = "embed nearest cat red --vectors a/word2vec.pt --word-index a/index_to_word.txt --count 3";
    assert_eq!(attn(at, same), said);
    let other = attn(at, &format!("{same} --embedding-key context_embeddings.weight"));
    assert_ne!(other, said);
    assert!(attn(at, "embed analogy cat dog red --vectors a --count 1").starts_with("cat : dog = red : ?\n"));
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("t.txt"), sentences()).unwrap();
    fs::write(at.join("v.txt"), "good 1 2\nfood 2 1\nfar -1 0\n").unwrap();
    refuses(at, "embed nearest goood --vectors v.txt", "\"goood\": has no vector; spelled like it: good, food");
    refuses(at, "embed nearest xyzzy --vectors v.txt", "no word is spelled like it");
    refuses(at, "embed nearest good --vectors v.txt --first 0", "--first 0: leaves no vectors");
    refuses(at, "embed nearest good --vectors none", "none: cannot be read");
    refuses(at, "embed nearest good --vectors .", "is a folder without word2vec.pt");
    refuses(at, "embed train --text none.txt --out o", "none.txt: cannot be read");
    refuses(at, "embed train --text t.txt --out o --min-count 9999", "--min-count 9999: none of 8 words");
    refuses(at, "embed train --text t.txt --out o --dim 0", "--dim 0: is out of range");
    refuses(at, "embed train --text t.txt --out o --lr=-1", "--lr -1: is out of range");
    refuses(at, "embed train --text t.txt --out o --header yes", "--text-column");
    refuses(at, "embed train --text t.txt --out v.txt", "v.txt: is no directory");
    refuses(at, "embed train --text t.txt --out .", ".: is not empty");
    refuses(at, "embed train --text t.txt --text-column 2 --out o", "t.txt: line 1 has 1 columns, --text-column is 2");
    assert!(!at.join("o").exists(), "nothing is written before all is found good");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_the_vectors_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("t.txt"), sentences()).unwrap();
    let line = "embed train --text t.txt --epochs 65536 --dim 300 --threads 1 --out o";
    let mut running = Process::new(assert_cmd::cargo::cargo_bin("attn"))
        .current_dir(at)
        .args(line.split_whitespace())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The directory is made when training begins, and the handler is set right after.
    let until = Instant::now() + Duration::from_secs(60);
    while !at.join("o").exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(Process::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap().success());
    let status = running.wait().unwrap();
    let said = std::io::read_to_string(running.stderr.take().unwrap()).unwrap();
    assert!(status.code() == Some(2) && said.contains("error: training: interrupted after "), "{said}");
    assert!(attn(at, "embed nearest red --vectors o --count 2").starts_with("red\n"));
}
