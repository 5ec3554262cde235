#!/usr/bin/env python3
"""Makes treebank.json: sentences, and their words by NLTK's word_tokenize (its part after sentence splitting).

    pip install nltk==3.10.4 && python tests/golden/treebank.py
"""

import json
import pathlib

from nltk.tokenize.destructive import NLTKWordTokenizer

SENTENCES = """
Pears cost $3.88 a pound (about 6,60 euros a kilo) in Boston.
Take two of them, please!
They'll read more of it than you'd believe.
I can't, won't and shouldn't; it's Bob's, isn't it?
HE'S RIGHT, DON'T YOU'LL SEE IT WASN'T HERS'
"Why?" he asked. "Because," she said, "I'm 'tired'."
'Tis the season, 'twas said; rock 'n' roll in the '90s, the '60s' best.
''quoted'' and ``quoted'' and "quoted" ("nested 'quotes' here").
«Guillemets», “curly quotes”, ‘single ones’ and „low ones“.
He said: 10:30, 1,000,000, a:b, c,d and e:
A comma at the end,
An ellipsis... and four.... and two.. at the end...
An ellipsis of one character… here
Visit http://example.com/a?b=c&d=e#f or mail me@example.com; 100% #sure *now*.
An em dash—like this, an en dash 1990–2000, a double--dash and a hyphen-dash.
I cannot gonna gotta wanna go; gimme that, lemme see, d'ye know more'n me?
Wanna-be-witty dialogue, wanna? CANNOT stop.
[Brackets] {braces} <angles> (parentheses).
The U.S. is big. The end.
The end of "it all."
The end (of it.)
The end of 'it all'.
What?! No!!! Really?'
He's the players' coach's friend's.
She'd've known; y'all'd've too, I'd'a.
O'Neill's d'Artagnan o'clock ma'am 'em
'hello' 'Hello 's 'S 've 'd 'n 'nd 're 'red
it''s odd '' here
don't" stop
end of line'
a * b ** c & d @ e # f % g
x.y.z. a.b .c d.
. .. ...
"
'
''
``
A tab\tand a no-break\u00a0space.
naïve café's "déjà vu" isn't ÜBER'S.
日本語。「かぎ」 wasn't
""Doubled"" (""again"")
(' quote ') ["x"] {'y'} <"z">
:, ,: ;; ?? !! $$
5'11" tall, 3'4 wide
the dogs' 'toys' 's
can't've won't'
""".strip("\n").split("\n")

tokenizer = NLTKWordTokenizer()
rows = [json.dumps([s, tokenizer.tokenize(s)], ensure_ascii=False) for s in SENTENCES]
pathlib.Path(__file__).with_name("treebank.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")
