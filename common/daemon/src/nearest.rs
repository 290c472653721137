//! What was probably meant by a word that is not known.

/// How alike two words have to be, from 0 to 1: what `clap` asks of options.
const ALIKE: f64 = 0.7;

/// The one of `known` that is most like `word`, if one is like it at all.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(alike, _)| *alike > ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_nearest_word_is_found_and_nothing_far_away() {
        let known = ["shutdown", "suspend", "reboot"];
        assert_eq!(nearest("shutdwon", known), Some("shutdown"));
        assert_eq!(nearest("rebot", known), Some("reboot"));
        assert_eq!(nearest("xyz", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("reboot", []), None);
    }
}
