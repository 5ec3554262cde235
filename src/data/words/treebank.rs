//! Sentences, and their words as the Penn Treebank writes them.
//!
//! The word rules are those of Robert MacIntyre's `tokenizer.sed` (University of Pennsylvania, 1995) with the additions
//! that NLTK's `word_tokenize` makes for Unicode quotation marks and dashes. Each rule puts spaces between words; the rules
//! work one after another on the whole sentence, so their order is part of them.
//!
//! Sentences are found by rule, where NLTK's Punkt uses a model of its own training data. All that words depend on is
//! whether a full stop ends a sentence, and so stands apart.

use regex::{Captures, Regex};
use std::borrow::Cow;
use std::sync::LazyLock;

/// Words that a full stop does not end a sentence after, in lower case and without it.
const ABBREVIATIONS: [&str; 44] = [
    "adj", "al", "apr", "aug", "ave", "capt", "cf", "co", "col", "corp", "dec", "dept", "dr", "ed", "esp", "etc",
    "feb", "fig", "gen", "gov", "inc", "jan", "jr", "lt", "ltd", "mr", "mrs", "ms", "mt", "nov", "oct", "pp", "prof",
    "rep", "rev", "sen", "sep", "sept", "sgt", "sr", "st", "vol", "vs", "viz",
];

fn closes(c: char) -> bool {
    matches!(c, ')' | ']' | '}' | '"' | '\'' | '”' | '’' | '»')
}

fn opens(c: char) -> bool {
    matches!(c, '(' | '[' | '{' | '"' | '\'' | '`' | '“' | '‘' | '«')
}

/// The sentences of a text, without the white space around them. A sentence ends at white space after `?` or `!`; after
/// a full stop, unless the word before it is an abbreviation (a list of 44, one letter, or letters with full stops between,
/// as `U.S.`); and after two or more full stops or `…`, where a capital follows. Closing quotation marks and brackets
/// belong to the sentence that they follow.
pub fn sentences(text: &str) -> Vec<&str> {
    let (mut found, mut from) = (Vec::new(), 0);
    let mut end_of_word = None;
    for (at, c) in text.char_indices() {
        if !c.is_whitespace() {
            end_of_word = Some(at + c.len_utf8());
            continue;
        }
        // Only the first white space after a word decides.
        let Some(end) = end_of_word.take() else { continue };
        if ends_sentence(&text[from..end], &text[at..]) {
            found.push(text[from..end].trim());
            from = end;
        }
    }
    found.push(text[from..].trim());
    found.retain(|sentence| !sentence.is_empty());
    found
}

/// Whether what ends with a word is a sentence, given what follows.
fn ends_sentence(before: &str, after: &str) -> bool {
    let word = before.trim_end_matches(closes);
    let Some(last) = word.chars().next_back() else { return false };
    if matches!(last, '?' | '!') {
        return true;
    }
    if last == '…' || word.ends_with("..") {
        let next = after.trim_start().trim_start_matches(opens).chars().next();
        return next.is_none_or(char::is_uppercase);
    }
    if last != '.' {
        return false;
    }
    let start = word.rfind(char::is_whitespace).map_or(0, |i| i + 1);
    let word = word[..word.len() - 1].get(start..).unwrap_or_default().trim_start_matches(opens);
    let one_letter = |part: &str| part.chars().count() == 1 && part.chars().all(char::is_alphabetic);
    let listed = word.len() <= 4 && ABBREVIATIONS.contains(&word.to_ascii_lowercase().as_str());
    let initials = word != "I" && word.split('.').all(one_letter);
    !listed && !initials
}

fn fixed(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a fixed expression")
}

macro_rules! rule {
    ($name:ident, $pattern:literal) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| fixed($pattern));
    };
}

rule!(OPENING_MARKS, r"[«“‘„]|`+");
rule!(OPENING_QUOTES, r#"([ (\[{<])(?:"|'')"#);
rule!(FULL_STOP, r#"([^.])\.([\])}>"'»”’ ]*)\s*$"#);
rule!(COLON_OR_COMMA, r"([:,])([^\d])");
rule!(STOPS, r"\.{2,}");
rule!(ALONE, r"[;@#$%&\u{2012}-\u{2015}?!*]");
rule!(CLOSING_QUOTE, r"([^'])' ");
rule!(BRACKETS, r"[\]\[(){}<>]|--");
rule!(CLOSING_MARKS, r#"[»”’]|''|""#);
rule!(CLITICS, r"([^' ])('[sS]|'[mM]|'[dD]|') ");
rule!(LONGER_CLITICS, r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ");
rule!(JOINED, r"(?i)\b(?:(?:cannot|d'ye|gimme|gonna|gotta|lemme|more'n)\b|wanna\s)");
rule!(TIS, r"(?i) ('t)(is|was)\b");

/// `text` with what `replace` gives for every match; untouched text is not copied.
fn apply(text: &mut String, rule: &Regex, replace: impl regex::Replacer) {
    if let Cow::Owned(changed) = rule.replace_all(text, replace) {
        *text = changed;
    }
}

/// A sentence with spaces between its words. Double quotation marks become `` `` `` and `''`, as in the Treebank.
pub fn treebank_words(sentence: &str) -> String {
    let padded = |found: &Captures| format!(" {} ", &found[0]);
    let mut text = sentence.to_string();
    apply(&mut text, &OPENING_MARKS, padded);
    if let Some(rest) = text.strip_prefix('"') {
        text = format!(" `` {rest}");
    }
    apply(&mut text, &OPENING_QUOTES, "$1 `` ");
    open_single_quotes(&mut text);
    apply(&mut text, &FULL_STOP, "$1 . $2 ");
    apply(&mut text, &COLON_OR_COMMA, " $1 $2");
    if text.ends_with([':', ',']) {
        let last = text.pop().expect("it ends with one");
        text.extend([' ', last, ' ']);
    }
    apply(&mut text, &STOPS, padded);
    apply(&mut text, &ALONE, padded);
    apply(&mut text, &CLOSING_QUOTE, "$1 ' ");
    apply(&mut text, &BRACKETS, padded);
    text = format!(" {text} ");
    apply(&mut text, &CLOSING_MARKS, |found: &Captures| match &found[0] {
        "\"" => " '' ".to_string(),
        mark => format!(" {mark} "),
    });
    // The next rules know no white space but single spaces.
    let words: Vec<&str> = text.split_whitespace().collect();
    text = format!(" {} ", words.join(" "));
    apply(&mut text, &CLITICS, "$1 $2 ");
    apply(&mut text, &LONGER_CLITICS, "$1 $2 ");
    apply(&mut text, &JOINED, |found: &Captures| {
        let first = match &found[0].as_bytes()[0].to_ascii_lowercase() {
            b'd' => 1,
            b'm' => 4,
            _ => 3,
        };
        let (first, second) = found[0].split_at(first);
        format!(" {first} {second} ")
    });
    apply(&mut text, &TIS, " $1 $2 ");
    text
}

/// Parts a single quotation mark from the word that it opens, unless that is what is left of one, as `'s`.
fn open_single_quotes(text: &mut String) {
    const LEFT: [&str; 8] = ["re", "ve", "ll", "m", "t", "s", "d", "n"];
    if !text.contains('\'') {
        return;
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len() + 8);
    let mut before = None;
    for (at, c) in text.char_indices() {
        out.push(c);
        let rest = &text[at + c.len_utf8()..];
        if c == '\'' && !before.is_some_and(is_word) && rest.starts_with(is_word) {
            let word = rest.split(|c| !is_word(c)).next().unwrap_or_default();
            if !LEFT.iter().any(|left| word.eq_ignore_ascii_case(left)) {
                out.push(' ');
            }
        }
        before = Some(c);
    }
    *text = out;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_the_rules_say() {
        let text = " Mr. J. R. Smith left the U.S. in 1999. \"Why?\" he asked!  Well... it was fun... Really (so.) I did. etc.";
        let expected = [
            "Mr. J. R. Smith left the U.S. in 1999.",
            "\"Why?\"",
            "he asked!",
            "Well... it was fun...",
            "Really (so.)",
            "I did.",
            "etc.",
        ];
        assert_eq!(sentences(text), expected);
        assert_eq!(sentences("so did I. Then… \n\n"), ["so did I.", "Then…"]);
        assert_eq!(sentences(" \t"), Vec::<&str>::new());
        assert_eq!(sentences("é. ü ñ"), ["é. ü ñ"], "one letter is no sentence");
    }

    /// Expected: NLTK (`tests/golden/treebank.py` made the file).
    #[test]
    fn words_are_nltks() {
        let golden: Vec<(String, Vec<String>)> =
            serde_json::from_str(include_str!("../../../tests/golden/treebank.json")).unwrap();
        assert!(golden.len() > 40);
        for (sentence, expected) in golden {
            let words: Vec<String> = treebank_words(&sentence).split_whitespace().map(String::from).collect();
            assert_eq!(words, expected, "{sentence}");
        }
    }
}
