//! Functions, their instructions, and which of them order memory: what `objdump -d` says.

use std::collections::{BTreeMap, BTreeSet};

/// An instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Its name, such as `dmb`.
    pub name: String,
    /// Its operands, such as `ish`; what objdump says about them is left out.
    pub operands: String,
}

/// What an instruction does to the order of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// What comes later is not before the loads up to here: `dmb ishld`, or a load that acquires.
    Acquire,
    /// What comes earlier is before this store: one that releases.
    Release,
    /// Everything: any other barrier.
    Full,
    /// An atomic read-modify-write, of the LSE extension or by exclusives.
    Atomic,
}

/// How the names of atomic read-modify-writes begin, those of exclusives included.
const ATOMICS: [&str; 13] = [
    "cas", "ldadd", "ldclr", "ldeor", "ldset", "ldsmax", "ldumax", "swp", "stadd", "ldxr", "ldaxr",
    "stxr", "stlxr",
];

impl Instruction {
    fn parse(text: &str) -> Self {
        let (name, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let operands = operands.split([';', '<']).next().unwrap_or_default();
        let operands = operands.split("//").next().unwrap_or_default();
        Self {
            name: name.to_owned(),
            operands: operands.trim().to_owned(),
        }
    }

    /// What it orders, if anything.
    pub fn order(&self) -> Option<Order> {
        let name = self.name.as_str();
        if ATOMICS.iter().any(|atomic| name.starts_with(atomic)) {
            return Some(Order::Atomic);
        }
        if name == "dmb" && self.operands == "ishld" {
            return Some(Order::Acquire);
        }
        if ["dmb", "dsb", "isb"].contains(&name) {
            return Some(Order::Full);
        }
        if name.starts_with("ldar") || name.starts_with("ldapr") || name.starts_with("ldapur") {
            return Some(Order::Acquire);
        }
        (name.starts_with("stlr") || name.starts_with("stlur")).then_some(Order::Release)
    }

    /// Where it branches to, when that is in the instruction.
    fn target(&self) -> Option<u64> {
        let branches = ["b", "bl", "cbz", "cbnz", "tbz", "tbnz"];
        let branches = branches.contains(&self.name.as_str()) || self.name.starts_with("b.");
        let target = self.operands.rsplit(',').next()?.trim();
        branches.then(|| u64::from_str_radix(target, 16).ok())?
    }
}

/// A function.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// Its name, demangled.
    pub name: String,
    /// Its instructions by address.
    pub instructions: BTreeMap<u64, Instruction>,
}

/// A program.
#[derive(Clone, Debug, Default)]
pub struct Disassembly {
    functions: BTreeMap<u64, Function>,
}

impl Disassembly {
    /// Parses what `objdump -d -C --no-show-raw-insn` prints.
    pub fn parse(text: &str) -> Self {
        let mut functions: BTreeMap<u64, Function> = BTreeMap::new();
        for line in text.lines() {
            let header = line
                .strip_suffix(">:")
                .and_then(|line| line.split_once(" <"));
            if let Some((address, name)) = header
                && let Ok(address) = u64::from_str_radix(address, 16)
            {
                let name = name.to_owned();
                let instructions = BTreeMap::new();
                functions.insert(address, Function { name, instructions });
            } else if let Some((address, text)) = line.split_once(":\t")
                && let Ok(address) = u64::from_str_radix(address.trim(), 16)
                && let Some(mut last) = functions.last_entry()
            {
                let instruction = Instruction::parse(text);
                last.get_mut().instructions.insert(address, instruction);
            }
        }
        Self { functions }
    }

    /// All functions.
    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.values()
    }

    /// Where the function of this name begins.
    pub fn find(&self, name: &str) -> Option<u64> {
        let mut functions = self.functions.iter();
        Some(*functions.find(|(_, function)| function.name == name)?.0)
    }

    /// The instruction at an address.
    pub fn at(&self, address: u64) -> Option<&Instruction> {
        let (_, function) = self.functions.range(..=address).next_back()?;
        function.instructions.get(&address)
    }

    /// The function that begins at `start`, and those that it calls or goes on in, and so on, of
    /// those that are `wanted`.
    pub fn reachable(&self, start: u64, wanted: impl Fn(&str) -> bool) -> Vec<&Function> {
        let mut seen = BTreeSet::from([start]);
        let mut left = vec![start];
        let mut found = Vec::new();
        while let Some(start) = left.pop() {
            let Some(function) = self.functions.get(&start) else {
                continue;
            };
            for target in function
                .instructions
                .values()
                .filter_map(Instruction::target)
            {
                let callee = self.functions.get(&target);
                if callee.is_some_and(|callee| wanted(&callee.name)) && seen.insert(target) {
                    left.push(target);
                }
            }
            found.push(function);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
probes:     file format elf64-littleaarch64

Disassembly of section .text:

0000000000000100 <one>:
 100:\tdmb\tish
 104:\tbl\t200 <two<T> as three>
 108:\tldr\tx0, [x1, #8]\t// what it is
 10c:\tb.ne\t104 <one+0x4>  // b.any

0000000000000200 <two<T> as three>:
 200:\tldarh\tw0, [x1]
 204:\tb\t300 <cold>

0000000000000300 <cold>:
 300:\tret
";

    #[test]
    fn functions_are_found_with_what_they_call() {
        let program = Disassembly::parse(TEXT);
        let one = program.find("one").unwrap();
        assert_eq!(one, 0x100);
        let names = |wanted: fn(&str) -> bool| {
            let found = program.reachable(one, wanted).into_iter();
            found
                .map(|function| function.name.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(|_| true), ["one", "two<T> as three", "cold"]);
        assert_eq!(names(|name| name != "cold"), ["one", "two<T> as three"]);
        let load = program.at(0x108).unwrap();
        assert_eq!(load.operands, "x0, [x1, #8]");
        assert_eq!(load.order(), None);
        assert_eq!(program.at(0x10c).unwrap().target(), Some(0x104));
        assert_eq!(program.at(0x400), None);
    }

    #[test]
    fn what_orders_is_told_from_what_does_not() {
        for (text, order) in [
            ("dmb\tishld", Some(Order::Acquire)),
            ("ldar\tx0, [x1]", Some(Order::Acquire)),
            ("ldapurh\tw0, [x1, #2]", Some(Order::Acquire)),
            ("stlrh\tw0, [x1]", Some(Order::Release)),
            ("dmb\tish", Some(Order::Full)),
            ("dmb\tishst", Some(Order::Full)),
            ("dsb\tsy", Some(Order::Full)),
            ("ldaddal\tw0, w1, [x2]", Some(Order::Atomic)),
            ("ldaxrh\tw0, [x2]", Some(Order::Atomic)),
            ("ldrh\tw0, [x1]", None),
            ("stp\tx0, x1, [sp]", None),
            ("strh\tw0, [x1]", None),
        ] {
            assert_eq!(Instruction::parse(text).order(), order, "{text}");
        }
    }
}
