//! Places in a picture, as a model wrote them down: JSON of one shape and nothing around it but the fence that models like to put
//! there. Whatever numbers the model uses, parts of width and height come out.

use cxmpute_market::catalogue::Places;
use cxmpute_market::picture::grid;
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
struct Objects<T> {
    objects: Vec<T>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Points<T> {
    points: Vec<T>,
}

/// A box in parts.
#[derive(Deserialize)]
struct PartBox {
    label: String,
    #[serde(rename = "box")]
    place: [f64; 4],
    confidence: f64,
}

/// A box in pixels.
#[derive(Deserialize)]
struct PixelBox {
    label: String,
    bbox_2d: [f64; 4],
}

/// A point in pixels; what it is called says nothing new.
#[derive(Deserialize)]
struct PixelPoint {
    point_2d: [f64; 2],
}

/// How a model sees a picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Eye {
    pub places: Places,
    /// Width and height of the picture that it is given.
    pub size: (u32, u32),
}

impl Eye {
    /// Parts of a place in pixels: across, down, across, down.
    fn parts<const N: usize>(self, place: [f64; N]) -> [f64; N] {
        let (width, height) = grid(self.size.0, self.size.1);
        let mut parts = place;
        for (at, part) in parts.iter_mut().enumerate() {
            *part /= f64::from(if at % 2 == 0 { width } else { height });
        }
        parts
    }

    /// Boxes; none when the text is not exactly that, or a place is outside the picture.
    pub fn read_objects(self, text: &str) -> Option<Vec<DetectedObject>> {
        let objects: Vec<DetectedObject> = match self.places {
            Places::Parts => {
                let Objects { objects } = read_object::<Objects<PartBox>>(text)?;
                let object = |PartBox { label, place, confidence }| DetectedObject {
                    label,
                    place,
                    confidence: Some(confidence),
                };
                objects.into_iter().map(object).collect()
            }
            Places::Pixels => {
                let objects = read_list(text, |Objects { objects }| objects)?;
                let object = |PixelBox { label, bbox_2d }| DetectedObject {
                    label,
                    place: self.parts(bbox_2d),
                    confidence: None,
                };
                objects.into_iter().map(object).collect()
            }
        };
        let good = |object: &DetectedObject| {
            let [left, top, right, bottom] = object.place;
            let label = object.label.chars().count();
            object.place.iter().copied().all(is_part)
                && left < right
                && top < bottom
                && object.confidence.is_none_or(is_part)
                && (1..=LABEL).contains(&label)
                && !object.label.chars().any(char::is_control)
        };
        (objects.len() <= MOST && objects.iter().all(good)).then_some(objects)
    }

    /// Points; none when the text is not exactly that, or a place is outside the picture.
    pub fn read_points(self, text: &str) -> Option<Vec<Point>> {
        let points: Vec<Point> = match self.places {
            Places::Parts => read_object::<Points<Point>>(text)?.points,
            Places::Pixels => {
                let points = read_list(text, |Points { points }| points)?;
                let point = |PixelPoint { point_2d }| {
                    let [x, y] = self.parts(point_2d);
                    Point { x, y }
                };
                points.into_iter().map(point).collect()
            }
        };
        (points.len() <= MOST && points.iter().all(|point| is_part(point.x) && is_part(point.y)))
            .then_some(points)
    }
}

/// A part of a whole; `NaN` is none.
fn is_part(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

/// The text without its fence.
fn bare(text: &str) -> &str {
    let text = text.trim();
    let fenced = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    fenced.map_or(text, |inside| inside.strip_prefix("json").unwrap_or(inside).trim())
}

/// An object: the type alone would read a list, too.
fn read_object<T: DeserializeOwned>(text: &str) -> Option<T> {
    let bare = bare(text);
    if bare.starts_with('{') { serde_json::from_str(bare).ok() } else { None }
}

/// A list, or the object around it that was asked for: models that were taught to write the list sometimes leave the object out.
fn read_list<W: DeserializeOwned, T: DeserializeOwned>(
    text: &str,
    inside: impl FnOnce(W) -> Vec<T>,
) -> Option<Vec<T>> {
    let text = bare(text);
    if text.starts_with('[') { serde_json::from_str(text).ok() } else { read_object(text).map(inside) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: (u32, u32) = (1_024, 768);

    fn read_objects(text: &str) -> Option<Vec<DetectedObject>> {
        Eye { places: Places::Parts, size: SIZE }.read_objects(text)
    }

    fn read_points(text: &str) -> Option<Vec<Point>> {
        Eye { places: Places::Parts, size: SIZE }.read_points(text)
    }

    /// Such a model looks at a picture of this size as 1,036 x 756 pixels.
    #[test]
    fn pixels_become_parts_of_what_the_model_looked_at() {
        let eye = Eye { places: Places::Pixels, size: SIZE };
        let list = r#"[{"bbox_2d": [259, 189, 518, 756], "label": "ball"}]"#;
        let fenced = format!("```json\n{list}\n```");
        for text in [list, fenced.as_str(), &format!(r#"{{"objects": {list}}}"#)] {
            let [ball] = <[_; 1]>::try_from(eye.read_objects(text).unwrap()).unwrap();
            assert_eq!(
                (ball.label.as_str(), ball.place, ball.confidence),
                ("ball", [0.25, 0.25, 0.5, 1.0], None)
            );
        }
        let point = eye.read_points(r#"{"points":[{"point_2d":[518,378],"label":"ball"}]}"#).unwrap();
        assert_eq!(point, [Point { x: 0.5, y: 0.5 }]);
        assert_eq!((eye.read_objects("[]"), eye.read_points("[]")), (Some(Vec::new()), Some(Vec::new())));
        for bad in [
            r#"[{"bbox_2d": [0, 0, 1037, 10], "label": "ball"}]"#,
            r#"[{"bbox_2d": [0, 0, 10, 757], "label": "ball"}]"#,
            r#"[{"bbox_2d": [20, 0, 10, 10], "label": "ball"}]"#,
            r#"[{"bbox_2d": [0, 0, 10], "label": "ball"}]"#,
            r#"[{"label": "ball"}]"#,
            "There is no ball.",
        ] {
            assert_eq!(eye.read_objects(bad), None, "{bad}");
        }
        assert_eq!(eye.read_points(r#"[{"point_2d":[518,-1]}]"#), None);
    }

    #[test]
    fn boxes_are_taken_only_inside_the_picture_and_right_way_round() {
        let good = r#"{"objects":[{"label":"ball","box":[0,0.25,0.5,1],"confidence":0.75}]}"#;
        let [ball] = <[_; 1]>::try_from(read_objects(good).unwrap()).unwrap();
        assert_eq!(
            (ball.label.as_str(), ball.place, ball.confidence),
            ("ball", [0.0, 0.25, 0.5, 1.0], Some(0.75))
        );
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
