"use strict";
const PRINT_PX = 660; // the text of an A4 or letter page at 96 pixels to the inch
const PRINT_SHARE = 0.8; // of a figure's height, so that a page holds two
const isTouch = window.matchMedia("(pointer: coarse)").matches;
const quiet = {
  displayModeBar: isTouch ? false : "hover",
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
  toImageButtonOptions: { format: "svg" },
};
const plots = [...document.querySelectorAll(".plot")];
const isNarrow = () => window.innerWidth < 560;

// Below the title of the x-axis, whatever the height: plotly counts in heights of the axes.
const legendY = (height) => -54 / (height - 120);

function draw(plot) {
  const figure = JSON.parse(document.getElementById(`data-${plot.dataset.figure}`).textContent);
  figure.layout.legend = { ...figure.layout.legend, y: legendY(plot.offsetHeight) };
  if (isTouch) figure.layout.dragmode = false; // a finger scrolls the page
  if (isNarrow()) {
    figure.layout.margin = { ...figure.layout.margin, l: 44, r: 8 };
    for (const trace of figure.data) {
      const bar = trace.marker && trace.marker.colorbar;
      if (bar) Object.assign(bar, { orientation: "h", y: 1.02, yanchor: "bottom", x: 0.5, len: 0.9, title: { ...bar.title, side: "top" } });
    }
  }
  return Plotly.newPlot(plot, figure.data, figure.layout, quiet);
}

Promise.all(plots.map(draw)).then(() => document.body.classList.add("drawn"));

const closed = [];
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    closed.push(part);
  }
  for (const plot of plots) {
    const height = Math.round(plot.offsetHeight * PRINT_SHARE);
    plot.dataset.height = plot.style.height;
    plot.style.height = `${height}px`;
    Plotly.relayout(plot, { width: PRINT_PX, height, autosize: false, "legend.y": legendY(height) });
  }
});
window.addEventListener("afterprint", () => {
  while (closed.length) closed.pop().open = false;
  for (const plot of plots) {
    plot.style.height = plot.dataset.height;
    const back = { width: null, height: null, autosize: true };
    Plotly.relayout(plot, { ...back, "legend.y": legendY(plot.offsetHeight) });
  }
});
