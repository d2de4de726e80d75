// Colours and dashes. Every structure has both, so that nobody needs to tell colours apart; the
// colours are those of Okabe and Ito and of IBM's palette for colour-blind people, lightened for a
// dark image.

export const STRUCTURES = {
  CTVT_427: { colour: "#ff7a59", dash: [] },
  PTVT_427: { colour: "#ffb000", dash: [7, 3] },
  Rectum: { colour: "#d99bff", dash: [] },
  Bladder: { colour: "#56c1ff", dash: [] },
  PenileBulb: { colour: "#f6ec5a", dash: [2, 3] },
  Genitalia: { colour: "#35d6a4", dash: [8, 3, 2, 3] },
  FemoralHead_L: { colour: "#8fb4ff", dash: [10, 4] },
  FemoralHead_R: { colour: "#8fb4ff", dash: [3, 3] },
  BODY: { colour: "#e6e9eb", dash: [1, 3] },
};
export const OBSERVERS = {
  obsB: { colour: "#ffb000", dash: [] },
  obsC: { colour: "#56c1ff", dash: [6, 3] },
  obsD: { colour: "#ff6fae", dash: [2, 3] },
  obsE: { colour: "#35d6a4", dash: [9, 3, 2, 3] },
};
export const OTHER = { colour: "#ffffff", dash: [] };

const PLASMA = ["#0d0887", "#5402a3", "#8b0aa5", "#b93289", "#db5c68", "#f48849", "#febd2a", "#f0f921"];
const VIRIDIS = ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"];
export const MAPS = { dose: PLASMA, uncertainty: VIRIDIS };

/** Return a colour of a map, `at` from 0 to 1, as [r, g, b]. */
export function colourAt(stops, at) {
  const place = Math.min(1, Math.max(0, at)) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(place));
  const [a, b] = [stops[i], stops[i + 1]].map((c) => [1, 3, 5].map((k) => parseInt(c.slice(k, k + 2), 16)));
  return a.map((v, k) => Math.round(v + (b[k] - v) * (place - i)));
}

/** Return 256 colours of a map as pixels. */
export function pixels(stops) {
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const [r, g, b] = colourAt(stops, i / 255);
    return 0xff000000 | (b << 16) | (g << 8) | r;
  });
}

/** Return a CSS gradient of a map, to the right. */
export function gradient(stops) {
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/** How the outline of a segmentation is drawn. */
export function look(segmentation) {
  const base = STRUCTURES[segmentation.structure] ?? OTHER;
  if (segmentation.source.startsWith("prediction:")) return { colour: base.colour, dash: [7, 3], width: 2.2 };
  switch (segmentation.source) {
    case "observer":
      return { ...(OBSERVERS[segmentation.observer] ?? OTHER), width: 2 };
    case "nnunet":
      return { colour: base.colour, dash: [4, 2, 1, 2], width: 2.2 };
    case "nnunet_fold":
      return { colour: base.colour, dash: [], width: 0.8, alpha: 0.75 };
    default:
      return { ...base, width: segmentation.structure === "BODY" ? 1.2 : 1.9 };
  }
}

/** Windows of the synthetic CT, HU. */
export const CT_WINDOWS = { "soft tissue": [-160, 240], pelvis: [-200, 400], bone: [-400, 1400], wide: [-1000, 1500] };
