"""How the page looks, and the small script behind captions and the strength slider."""

from __future__ import annotations

import gradio as gr


def theme() -> gr.Theme:
    """Warm paper and ink; every text has a contrast of at least 4.5 : 1, in light and dark."""
    return gr.themes.Monochrome(
        primary_hue="orange", secondary_hue="stone", neutral_hue="stone", radius_size="md",
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="#9a3412", button_primary_background_fill_dark="#9a3412",
        button_primary_background_fill_hover="#7c2d12", button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff", block_info_text_color="#57534e", block_info_text_color_dark="#d6d3d1",
    )  # fmt: skip


CSS = """
.gradio-container { max-width: min(1080px, 100%) !important; min-width: 0 !important; margin: 0 auto !important; overflow-x: clip; }
.gradio-container > .main { min-width: 0 !important; max-width: 100%; }
.card label, .card textarea { min-width: 0; box-sizing: border-box; }
.cards { list-style: none; padding: 0; margin: 0; display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(min(280px, 100%), 1fr)); }
.card { display: flex; gap: 10px; padding: 8px; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.card img { object-fit: contain; background: #fff; border-radius: 6px; }
.card label { flex: 1; display: flex; flex-direction: column; gap: 4px; min-width: 0; }
.card .file { font-size: 12px; overflow-wrap: anywhere; }
.card textarea { width: 100%; font: inherit; font-size: 14px; padding: 4px 6px; resize: vertical; border-radius: 6px;
  border: 1px solid var(--border-color-primary); background: var(--input-background-fill); color: var(--body-text-color); }
.card .saved { font-size: 12px; min-height: 1em; }
.hint { opacity: .9; }
#status progress { width: 100%; height: 12px; accent-color: #9a3412; }
.alert { border: 2px solid #b91c1c; border-radius: 8px; padding: 8px 12px; }
.samples, .strip { display: flex; flex-wrap: wrap; gap: 12px; }
.samples figure, .strip figure { margin: 0; width: 160px; }
.samples img, .strip img { width: 160px; height: 160px; object-fit: contain; border-radius: 8px; background: #fff;
  border: 1px solid var(--border-color-primary); image-rendering: auto; }
figcaption { font-size: 12px; overflow-wrap: anywhere; }
.strength { display: flex; align-items: center; gap: 12px; margin: 4px 0 14px; }
.strength input { flex: 1; accent-color: #9a3412; height: 28px; }
.strength output { min-width: 15ch; }
.download { display: inline-block; margin-top: 10px; padding: 10px 18px; border-radius: 8px; background: #9a3412; color: #fff !important;
  text-decoration: none; font-weight: 600; }
"""

HEAD = """
<script>
document.addEventListener('change', async (event) => {
  const field = event.target;
  if (!field.matches || !field.matches('textarea.caption')) return;
  const said = field.parentElement.querySelector('.saved');
  try {
    const answer = await fetch('/caption/' + field.dataset.place, {method: 'PUT', body: field.value});
    said.textContent = (await answer.json()).message;
  } catch (error) { said.textContent = 'Not saved: the studio does not answer.'; }
});
document.addEventListener('input', (event) => {
  const slider = event.target;
  if (!slider.matches || !slider.matches('.strength input')) return;
  const box = slider.closest('.tryout'), strengths = JSON.parse(slider.dataset.strengths), chosen = strengths[slider.value];
  const words = chosen === 0 ? '0: the base model' : String(chosen);
  slider.setAttribute('aria-valuetext', words);
  box.querySelector('output').textContent = 'Strength ' + words;
  for (const picture of box.querySelectorAll('img[data-sources]')) picture.src = JSON.parse(picture.dataset.sources)[slider.value];
});
</script>
"""
