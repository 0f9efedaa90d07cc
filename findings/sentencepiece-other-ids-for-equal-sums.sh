#!/bin/bash
# sentencepiece 0.2.1 and 0.2.3: the same Unigram model cuts the same text into other pieces, so that a model which was
# trained with the one gets other ids from the other. "bb", "b" and "b", "bb" have equal sums of scores. Which of them is
# taken, rounding decides, and so what stands before them; and the sums are rounded otherwise since 0.2.2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 0.2.1 0.2.3; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install -q --only-binary=:all: "sentencepiece==$version" protobuf==7.36.1 2>>log || { cat log; exit 1; }
done
cat >model.py <<'PYTHON'
from sentencepiece import sentencepiece_model_pb2 as protobuf

model = protobuf.ModelProto()
model.trainer_spec.model_type = protobuf.TrainerSpec.UNIGRAM
model.normalizer_spec.name = "identity"
model.normalizer_spec.add_dummy_prefix = False
model.pieces.add(piece="<unk>", type=protobuf.ModelProto.SentencePiece.UNKNOWN)
for piece, score in (("b", -4.931796), ("bb", -5.884578), ("c", -5.777)):
    model.pieces.add(piece=piece, score=score)
with open("a.model", "wb") as file:
    file.write(model.SerializeToString())
PYTHON
cat >cut.py <<'PYTHON'
import sentencepiece

model = sentencepiece.SentencePieceProcessor(model_file="a.model")
print([model.encode("c" * count + "bbb", out_type=str)[count:] for count in (0, 5, 17)])
PYTHON
venv-0.2.3/bin/python model.py
for version in 0.2.1 0.2.3; do
  "venv-$version/bin/python" cut.py >"$version"
  echo "sentencepiece $version: bbb behind 0, 5 and 17 times c is $(cat "$version")"
done
diff <(echo "[['b', 'bb'], ['bb', 'b'], ['b', 'bb']]") 0.2.1
diff <(echo "[['b', 'bb'], ['b', 'bb'], ['b', 'bb']]") 0.2.3
