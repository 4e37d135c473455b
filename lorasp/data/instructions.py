"""The folders of OpenAI's evals that serve as instructions: plain requests in English.

Left out are exams and multiple choice (they resemble MMLU, which is the test), other languages,
games on boards, long tables, and whatever the test itself is drawn from.
"""

FOLDERS = """
2d_movement ab ambiguous-sentences anagrams balance_chemical_equation base64_decode bitwise
categorize_with_distractors compare-countries-area counterfactual-reasoning crepe crontab
css-selectors cube-pack cybersecurity date-calculator day-of-week-from-date determinant
emoji_riddle european_date_format_challenge event_categories finance_calc first-letters
forth_stack_sim imperial_date_to_string infiniteloop-match irony irrelevant-negative-diversion
largest_country last_word_nth linear-regression linear_equations math_equations missing_operators
music-theory music_theory_scale_modes ner_finance partially_solved_crossword_clues ph_calculation
points_on_line premature-conclusions probability_questions proofreader regex-match
reverse-sort-words-eng reverse_string rock-climbing rot13 security_guide seo_keywords
shopping_discount_comparison simple-charting smiles_to_formula soc_codes sort_numeric
stock_options swap-words syntax-check test_time_zone_conversion track_objects
tracking-shuffled-objects tricky-word-problems unique_combinations utility_price_parsing vigenere
word_association
""".split()
