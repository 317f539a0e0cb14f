//! What the documents name is there.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;

/// The text of each module of tests by its name: of the two programs, of the scripts that run on a mount, and of the
/// library's own.
fn modules() -> HashMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut modules = HashMap::<String, String>::new();
    for place in ["tests", "src"] {
        for entry in walkdir::WalkDir::new(root.join(place)) {
            let path = entry.unwrap().into_path();
            let ending = path.extension().and_then(OsStr::to_str);
            if !matches!(ending, Some("rs" | "py")) {
                continue;
            }
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let name = match stem {
                "mod" => path.parent().unwrap().file_name().unwrap().to_str().unwrap(),
                stem => stem,
            };
            let text = std::fs::read_to_string(&path).unwrap();
            modules.entry(name.to_owned()).or_default().push_str(&text);
        }
    }
    modules
}

/// The tests that a line of a table names: `module::test`, and `::test` for another of the same module.
fn named(line: &str) -> Vec<(String, String)> {
    let mut module = String::new();
    let mut named = Vec::new();
    for word in line.split('`').skip(1).step_by(2) {
        let is_name = |part: &str| {
            part == "*" || part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        };
        if !word.contains("::") || !word.split("::").all(is_name) {
            continue;
        }
        let (path, test) = word.rsplit_once("::").unwrap();
        if let Some(first) = path.split("::").next().filter(|first| !first.is_empty()) {
            module = first.to_owned();
        }
        named.push((module.clone(), test.to_owned()));
    }
    named
}

#[test]
fn every_test_that_the_promises_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = modules();
    let promises = std::fs::read_to_string(root.join("docs/SEMANTICS.md")).unwrap();
    let rows = promises.lines().filter(|line| line.starts_with('|'));
    let all: Vec<_> = rows.flat_map(named).collect();
    assert!(all.len() > 100, "{}", all.len());
    let is_there = |(module, test): &&(String, String)| {
        let is_in = |text: &String| {
            let is_defined = |word: &str| text.contains(&format!("{word} {test}("));
            test == "*" || is_defined("fn") || is_defined("def")
        };
        modules.get(module).is_some_and(is_in)
    };
    let missing: Vec<_> = all.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_name_of_a_test_is_told_from_other_words() {
    let line = "| `a::b`, `::c` and `d::e::f`, `server::*` of `Foo::bar` and `x` | `::g` |";
    let expected = [("a", "b"), ("a", "c"), ("d", "f"), ("server", "*"), ("server", "g")];
    assert_eq!(named(line), expected.map(|(module, test)| (module.to_owned(), test.to_owned())));
}
