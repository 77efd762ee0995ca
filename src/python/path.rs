//! Where in a message something is that has no JSON form, as errors say it.

/// The most characters of a path that an error shows. A circular structure is 254 steps deep, and a
/// key may be a whole document.
const MOST: usize = 200;

/// The path of steps that were collected from the inside out. Of a long one the middle is left out.
pub fn shown(steps: &[String]) -> String {
    let whole: String = steps.iter().rev().map(String::as_str).collect();
    let length = whole.chars().count();
    if length <= MOST {
        return whole;
    }
    let beginning: String = whole.chars().take(MOST / 2).collect();
    let end: String = whole.chars().skip(length - MOST / 2).collect();
    format!("{beginning} … {end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_path_is_whole() {
        assert_eq!(shown(&["[0]".to_owned(), "['a']".to_owned()]), "['a'][0]");
        assert_eq!(shown(&[]), "");
    }

    #[test]
    fn of_a_long_path_both_ends_are_left() {
        let mut steps = vec!["['ü']".to_owned(); 254];
        steps[0] = "['inner']".to_owned();
        steps[253] = "['outer']".to_owned();
        let path = shown(&steps);
        assert_eq!(path.chars().count(), MOST + 3);
        assert!(path.starts_with("['outer']['ü']") && path.ends_with("['ü']['inner']"), "{path}");
    }
}
