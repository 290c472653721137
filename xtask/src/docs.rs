//! Tests of the documents: every page of the book can be reached, every link leads somewhere, and
//! the list of clauses is that of the tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cargo::workspace;

/// All documents: those in the root, and the book's pages.
fn documents() -> Vec<PathBuf> {
    let docs = workspace().join("docs");
    [workspace(), &docs]
        .into_iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

/// The targets of the links `[text](target)` of a document, without code blocks.
fn links(document: &str) -> Vec<&str> {
    let mut in_code = false;
    let prose = document.lines().filter(|line| {
        let fence = line.starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    });
    prose
        .flat_map(|line| line.split("](").skip(1))
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .collect()
}

#[test]
fn links_are_found_outside_of_code() {
    let text = "a [b](c.md) and [d](e#f)\n```\n[g](h)\n```\n[i](j)";
    assert_eq!(links(text), ["c.md", "e#f", "j"]);
}

#[test]
fn every_link_within_the_project_leads_to_a_file() {
    let documents = documents();
    assert!(documents.len() > 5, "{documents:?}");
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        let own = links(&text)
            .into_iter()
            .filter(|link| !link.contains("://"));
        for link in own {
            let (file, _) = link.split_once('#').unwrap_or((link, ""));
            let target = document.parent().unwrap().join(file);
            assert!(target.exists(), "{}: {link}", document.display());
        }
    }
}

#[test]
fn every_page_of_the_book_is_in_its_summary() {
    let docs = workspace().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed = links(&summary);
    for page in documents() {
        if page.parent() != Some(Path::new(&docs)) || page.ends_with("SUMMARY.md") {
            continue;
        }
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(listed.contains(&name), "{name} is not in SUMMARY.md");
    }
}

/// The source files below a directory of the workspace.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names of all functions that may be tests.
fn functions() -> Vec<String> {
    let mut files = Vec::new();
    sources(workspace(), &mut files);
    let names = |file: PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        let lines = text
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("fn "));
        lines
            .filter_map(|line| line.split_once('('))
            .map(|(name, _)| name.to_owned())
            .collect::<Vec<_>>()
    };
    files.into_iter().flat_map(names).collect()
}

/// The clauses that a name begins with: `g9` and `g14` of `g9_g14_levels`.
fn clauses(name: &str) -> impl Iterator<Item = &str> {
    name.split('_').take_while(|word| {
        let number = word.strip_prefix(['c', 'e', 'g', 'i', 'p', 'r', 's', 'v']);
        number.is_some_and(|number| number.parse::<u8>().is_ok())
    })
}

/// What is in the first column of the tables, and what between backticks in the last.
fn cells(page: &str) -> impl Iterator<Item = (&str, &str)> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    rows.filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | "))
}

#[test]
fn clauses_are_those_of_the_tests() {
    let page = fs::read_to_string(workspace().join("docs/clauses.md")).unwrap();
    let listed: BTreeSet<_> = cells(&page)
        .map(|(first, _)| first)
        .filter(|first| clauses(first).next().is_some())
        .collect();
    let functions = functions();
    let tested: BTreeSet<_> = functions.iter().flat_map(|name| clauses(name)).collect();
    assert!(listed.len() > 50, "{listed:?}");
    assert_eq!(listed, tested);
}

#[test]
fn every_bug_of_a_peer_has_the_test_that_is_named() {
    let page = fs::read_to_string(workspace().join("docs/clauses.md")).unwrap();
    let names: Vec<_> = cells(&page)
        .filter_map(|(_, last)| last.strip_prefix('`')?.strip_suffix('`'))
        .collect();
    let functions = functions();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(functions.iter().any(|function| function == name), "{name}");
    }
}
