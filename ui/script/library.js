// A drop box is called by what is written in it: Gradio gives it another name, which speech control then does not find.
new MutationObserver(() => {
  for (const box of document.querySelectorAll('button[aria-dropeffect][aria-label]')) box.removeAttribute('aria-label');
}).observe(document.documentElement, {childList: true, subtree: true});
