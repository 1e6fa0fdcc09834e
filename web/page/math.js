// Formulas on the page at `/`, as a file of their own: `npm run build` writes features/page/math.js.
export { renderToString } from "katex";
