//! Any text as a file: a platform or an error, and never a panic.

use proptest::prelude::*;

use super::*;

/// Pieces that files are made of, so that random ones come further than the first byte.
fn pieces() -> impl Strategy<Value = String> {
    let lines: Vec<_> = EXAMPLE.lines().map(str::to_owned).collect();
    let line = prop_oneof![
        8 => prop::sample::select(lines),
        1 => "[ -~]{0,20}",
        1 => Just("[[sensor]]".to_owned()),
    ];
    prop::collection::vec(line, 0..40).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn test_any_bytes_are_a_platform_or_an_error(text: Vec<u8>) {
        let _ = parse(&nowhere(&Root::new("/nowhere")), &text, 2);
    }

    #[test]
    fn test_any_mixture_of_lines_is_a_platform_or_an_error(text in pieces()) {
        if let Err(error) = parse(&nowhere(&Root::new("/nowhere")), text.as_bytes(), 2) {
            prop_assert!(error.to_string().starts_with("line "));
        }
    }

    #[test]
    fn test_a_changed_example_is_a_platform_or_an_error(place: prop::sample::Index, byte: u8) {
        let mut text = EXAMPLE.as_bytes().to_vec();
        let place = place.index(text.len());
        text[place] = byte;
        let _ = parse(&nowhere(&Root::new("/nowhere")), &text, 2);
    }
}
