// Regions that scroll can be reached by keyboard; landmarks and the search have names.
"use strict";
const named = () => {
  document.querySelectorAll(".md-code__nav").forEach((nav, number) => {
    nav.setAttribute("aria-label", `Code block ${number + 1}`);
  });
  document.querySelectorAll(".md-typeset__scrollwrap, .dataframe").forEach((region) => {
    region.tabIndex = 0;
  });
};
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
new MutationObserver(named).observe(document.body, { childList: true, subtree: true });
named();
