"""The lesson: two optimizers learn one language side by side, told as it happens.

``lesson`` trains and yields frames, ``turns`` finds what is worth telling in them; neither knows how they are shown.
``screen`` draws frames for a terminal, ``figure`` keeps the end state.
"""
