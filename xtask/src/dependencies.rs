//! What may be depended on: licences, sources and versions, by the rules of `deny.toml`.
//!
//! These are the checks of `cargo deny check bans licenses sources` on what cargo itself says of
//! the packages, with the same reader of licences. cargo-deny itself takes minutes to build;
//! whoever has it may run it on the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use spdx::expression::Expression;
use spdx::{LicenseItem, ParseMode};

use crate::{cargo, style};

/// Where all packages come from that are not of this workspace.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What is checked of `deny.toml`. All of it is known: a rule that is not would not be checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Rules {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Graph {
    targets: Vec<String>,
    all_features: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Licenses {
    allow: Vec<String>,
    /// For licences that are found in texts. Here a package has to name its own.
    #[serde(rename = "confidence-threshold")]
    _confidence_threshold: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    multiple_versions: Lint,
    wildcards: Lint,
    allow_wildcard_paths: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: Lint,
    unknown_git: Lint,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Lint {
    Allow,
    Warn,
    Deny,
}

/// What cargo says of the workspace and all that it depends on.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    /// None when it is a directory.
    source: Option<String>,
    license: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    req: String,
    /// Where it is when it is a directory.
    path: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

/// What was found, once each: for several targets it is the same.
#[derive(Debug, Default, PartialEq)]
struct Found {
    wrong: BTreeSet<String>,
    remarks: BTreeSet<String>,
}

impl Found {
    fn add(&mut self, lint: Lint, what: String) {
        match lint {
            Lint::Allow => false,
            Lint::Warn => self.remarks.insert(what),
            Lint::Deny => self.wrong.insert(what),
        };
    }
}

/// Checks all that the workspace depends on, on each target.
pub(crate) fn check() -> Result<()> {
    let path = cargo::workspace().join("deny.toml");
    let rules = fs::read_to_string(&path).context("cannot read deny.toml")?;
    let rules: Rules =
        toml::from_str(&rules).context("deny.toml has a rule that is not checked")?;
    let mut found = Found::default();
    let mut packages = BTreeSet::new();
    for target in &rules.graph.targets {
        let metadata = metadata(target, rules.graph.all_features)?;
        packages.extend(metadata.used().map(|package| package.id.clone()));
        rules.look_at(&metadata, &mut found)?;
    }
    let style = style::stdout();
    for remark in &found.remarks {
        println!("{} {remark}", style.faint("remark:"));
    }
    for wrong in &found.wrong {
        println!("{} {wrong}", style.bad("wrong:"));
    }
    ensure!(
        found.wrong.is_empty(),
        "what is depended on is not as deny.toml says"
    );
    println!("{} packages are as deny.toml says", packages.len());
    Ok(())
}

fn metadata(target: &str, all_features: bool) -> Result<Metadata> {
    let mut command = cargo::command(["metadata", "--locked", "--format-version", "1"]);
    command.args(["--filter-platform", target]);
    command.args(all_features.then_some("--all-features"));
    let output = command.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "`cargo metadata` failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("cannot read cargo's metadata")
}

impl Metadata {
    /// The packages that are built for the target, for the build itself or for tests.
    fn used(&self) -> impl Iterator<Item = &Package> {
        let nodes: BTreeSet<_> = self.resolve.nodes.iter().map(|node| &node.id).collect();
        let packages = self.packages.iter();
        packages.filter(move |package| nodes.contains(&package.id))
    }
}

impl Rules {
    fn look_at(&self, metadata: &Metadata, found: &mut Found) -> Result<()> {
        let mut versions = BTreeMap::<_, BTreeSet<_>>::new();
        for package in metadata.used() {
            let name = format!("{} {}", package.name, package.version);
            if let Err(why) = self.licensed(package) {
                found.wrong.insert(format!("{name}: {why}"));
            }
            self.look_at_source(package, &name, found);
            for dependency in &package.dependencies {
                let allowed = self.bans.allow_wildcard_paths && dependency.path.is_some();
                if dependency.req == "*" && !allowed {
                    let what = format!("{name} takes any version of {}", dependency.name);
                    found.add(self.bans.wildcards, what);
                }
            }
            let own = versions.entry(&package.name).or_default();
            own.insert(&package.version);
        }
        for (name, versions) in versions {
            if versions.len() > 1 {
                let versions: Vec<_> = versions.into_iter().map(String::as_str).collect();
                let what = format!("{name} is there in versions {}", versions.join(", "));
                found.add(self.bans.multiple_versions, what);
            }
        }
        ensure!(!metadata.packages.is_empty(), "cargo knows no packages");
        Ok(())
    }

    /// Whether a package may be used by what it allows.
    fn licensed(&self, package: &Package) -> Result<()> {
        let license = package.license.as_ref();
        let license = license.context("it does not name its licence")?;
        let expression = Expression::parse_mode(license, ParseMode::LAX)
            .map_err(|error| anyhow::anyhow!("its licence {license} cannot be read: {error}"))?;
        let allowed = expression.evaluate(|wanted| {
            let name = match &wanted.license {
                LicenseItem::Spdx { id, .. } => id.name,
                LicenseItem::Other { .. } => return false,
            };
            // What is allowed is the licence as it is. An exception would be another.
            wanted.addition.is_none() && self.licenses.allow.iter().any(|own| own == name)
        });
        if !allowed {
            bail!("its licence is {license}, which the allowed ones do not fulfil");
        }
        Ok(())
    }

    fn look_at_source(&self, package: &Package, name: &str, found: &mut Found) {
        match package.source.as_deref() {
            None | Some(REGISTRY) => {}
            Some(source) => {
                let lint = match source.starts_with("git+") {
                    true => self.sources.unknown_git,
                    false => self.sources.unknown_registry,
                };
                found.add(lint, format!("{name} comes from {source}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rules() -> Rules {
        let path = cargo::workspace().join("deny.toml");
        toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn package(name: &str, license: Value, source: Value, dependencies: Value) -> Value {
        json!({
            "id": format!("{name} {source}"), "name": name, "version": "1.0.0", "source": source,
            "license": license, "dependencies": dependencies,
        })
    }

    /// What is found in packages, all of which are used.
    fn found(packages: &[Value]) -> Found {
        let nodes: Vec<_> = packages
            .iter()
            .map(|own| json!({ "id": own["id"] }))
            .collect();
        let metadata = json!({ "packages": packages, "resolve": { "nodes": nodes } });
        let mut found = Found::default();
        let metadata = serde_json::from_value(metadata).unwrap();
        rules().look_at(&metadata, &mut found).unwrap();
        found
    }

    #[test]
    fn licences_are_as_a_whole_allowed_or_not() {
        for (license, allowed) in [
            ("MIT", true),
            ("MIT/Apache-2.0", true),
            ("GPL-2.0-only OR MIT", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("Apache-2.0 WITH LLVM-exception OR MIT", true),
            ("Apache-2.0 WITH LLVM-exception", false),
            ("MIT AND GPL-2.0-only", false),
            ("GPL-3.0-or-later", false),
            ("LicenseRef-own", false),
            ("no licence at all", false),
        ] {
            let found = found(&[package("a", json!(license), json!(REGISTRY), json!([]))]);
            assert_eq!(found.wrong.is_empty(), allowed, "{license}: {found:?}");
        }
        let found = found(&[package("a", Value::Null, json!(REGISTRY), json!([]))]);
        assert!(!found.wrong.is_empty());
    }

    #[test]
    fn other_sources_are_wrong() {
        for (source, wrong) in [
            (Value::Null, 0),
            (json!(REGISTRY), 0),
            (json!("registry+https://example.org/index"), 1),
            (json!("git+https://example.org/a#0123"), 1),
        ] {
            let found = found(&[package("a", json!("MIT"), source.clone(), json!([]))]);
            assert_eq!(found.wrong.len(), wrong, "{source}");
        }
    }

    #[test]
    fn any_version_is_wrong_but_of_a_directory_and_two_are_remarked_upon() {
        let any = json!([{ "name": "b", "req": "*", "path": null }]);
        let own = json!([{ "name": "b", "req": "*", "path": "/b" }]);
        let mut other = package("a", json!("MIT"), json!(REGISTRY), own);
        other["id"] = json!("other");
        other["version"] = json!("2.0.0");
        let found = found(&[package("a", json!("MIT"), json!(REGISTRY), any), other]);
        assert_eq!(
            found.wrong,
            ["a 1.0.0 takes any version of b".to_owned()].into()
        );
        let remark = "a is there in versions 1.0.0, 2.0.0".to_owned();
        assert_eq!(found.remarks, [remark].into());
    }

    #[test]
    fn a_rule_that_is_not_checked_is_an_error() {
        let path = cargo::workspace().join("deny.toml");
        let text = fs::read_to_string(path).unwrap();
        let more = text.replace("[bans]", "[bans]\ndeny = [\"openssl-sys\"]");
        assert_ne!(more, text);
        assert!(toml::from_str::<Rules>(&more).is_err());
    }
}
