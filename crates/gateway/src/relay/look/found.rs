//! Places in a picture, as a model wrote them down: JSON of one shape and nothing around it but the fence that models like to put
//! there.

use cxmpute_wire::sight::{DetectedObject, Point};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Most things that are found in one picture.
const MOST: usize = 200;
/// Most characters of a label.
const LABEL: usize = 200;

/// What was found.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub objects: Vec<DetectedObject>,
    pub points: Vec<Point>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Objects {
    objects: Vec<DetectedObject>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Points {
    points: Vec<Point>,
}

/// Boxes; none when the text is not exactly that, or a place is outside the picture.
pub(super) fn read_objects(text: &str) -> Option<Vec<DetectedObject>> {
    let Objects { objects } = read(text)?;
    let good = |object: &DetectedObject| {
        let [left, top, right, bottom] = object.place;
        let label = object.label.chars().count();
        object.place.iter().copied().all(is_part)
            && left < right
            && top < bottom
            && is_part(object.confidence)
            && (1..=LABEL).contains(&label)
            && !object.label.chars().any(char::is_control)
    };
    (objects.len() <= MOST && objects.iter().all(good)).then_some(objects)
}

/// Points; none when the text is not exactly that, or a place is outside the picture.
pub(super) fn read_points(text: &str) -> Option<Vec<Point>> {
    let Points { points } = read(text)?;
    (points.len() <= MOST && points.iter().all(|point| is_part(point.x) && is_part(point.y)))
        .then_some(points)
}

/// A part of a whole; `NaN` is none.
fn is_part(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

fn read<T: DeserializeOwned>(text: &str) -> Option<T> {
    let text = text.trim();
    let fenced = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let bare = fenced.map_or(text, |inside| inside.strip_prefix("json").unwrap_or(inside).trim());
    // An object: the type alone would read a list, too.
    if !bare.starts_with('{') {
        return None;
    }
    serde_json::from_str(bare).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_taken_only_inside_the_picture_and_right_way_round() {
        let good = r#"{"objects":[{"label":"ball","box":[0,0.25,0.5,1],"confidence":0.75}]}"#;
        let [ball] = <[_; 1]>::try_from(read_objects(good).unwrap()).unwrap();
        assert_eq!((ball.label.as_str(), ball.place, ball.confidence), ("ball", [0.0, 0.25, 0.5, 1.0], 0.75));
        assert_eq!(read_objects(&format!("```json\n{good}\n```")).unwrap().len(), 1);
        assert_eq!(read_objects(r#"{"objects":[]}"#), Some(Vec::new()));
        for bad in [
            "",
            "There is a ball.",
            &format!("Sure! {good}"),
            &format!("{good} {good}"),
            "[]",
            r#"[[]]"#,
            r#"{"objects":{}}"#,
            r#"{"objects":[],"note":"x"}"#,
            r#"{"objects":[{"label":"ball","box":[0,0,1.5,1],"confidence":1}]}"#,
            r#"{"objects":[{"label":"ball","box":[12,40,200,300],"confidence":1}]}"#,
            r#"{"objects":[{"label":"ball","box":[0.5,0,0.2,1],"confidence":1}]}"#,
            r#"{"objects":[{"label":"ball","box":[0,0,1],"confidence":1}]}"#,
            r#"{"objects":[{"label":"ball","box":[0,0,1,1],"confidence":-1}]}"#,
            r#"{"objects":[{"label":"ball","box":[0,0,1,1]}]}"#,
            r#"{"objects":[{"label":"\u001b[2J","box":[0,0,1,1],"confidence":1}]}"#,
            r#"{"objects":[{"label":"","box":[0,0,1,1],"confidence":1}]}"#,
        ] {
            assert_eq!(read_objects(bad), None, "{bad}");
        }
        let many = vec![r#"{"label":"a","box":[0,0,1,1],"confidence":1}"#; MOST + 1].join(",");
        assert_eq!(read_objects(&format!(r#"{{"objects":[{many}]}}"#)), None);
    }

    #[test]
    fn points_are_taken_only_inside_the_picture() {
        let points = read_points(r#"{"points":[{"x":0.5,"y":1}]}"#).unwrap();
        assert_eq!(points, [Point { x: 0.5, y: 1.0 }]);
        for bad in [r#"{"points":[{"x":1.01,"y":0}]}"#, r#"{"points":[{"x":0.5}]}"#, r#"{"points":7}"#, "{}"]
        {
            assert_eq!(read_points(bad), None, "{bad}");
        }
    }
}
