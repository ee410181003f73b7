// A drop box is named by its visible text. Gradio gives it another aria-label, by which speech control does
// not find it.
new MutationObserver(() => {
  for (const box of document.querySelectorAll('button[aria-dropeffect][aria-label]')) {
    box.removeAttribute('aria-label');
  }
}).observe(document.documentElement, { childList: true, subtree: true });
