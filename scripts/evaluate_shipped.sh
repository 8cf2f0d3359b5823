#!/usr/bin/env bash
# Makes the numbers of docs/results.md: every method on the embedded base model, on subsets of stated size.
#
#     scripts/evaluate_shipped.sh DATA OUTPUT [PART ...]
#     python scripts/results_page.py OUTPUT/squad OUTPUT/squad-sft OUTPUT/metaicl OUTPUT/metaicl-k-shot OUTPUT/msc \
#         OUTPUT/forgetting OUTPUT/needle
#
# DATA holds squad/, metaicl/test/, conv/ and pretrain/. Parts: squad-generator, squad, fine-tuning, metaicl, k-shot, msc,
# forgetting, needle; all of them without names. squad-generator asks the generator alone, but 400 questions a length.
# GENERATOR=FILE evaluates another generator than the shipped one. METHODS=generative-adapter asks it alone in squad,
# metaicl, msc and needle, where the other methods' numbers are known (results_page.py --rows generative-adapter puts it
# in). Each goes on where it was when it is run again. On two CPU cores all take about three hours.
set -euo pipefail
data=${1:?folder of the data}; output=${2:?folder of the results}; shift 2
parts=("$@"); [ ${#parts[@]} -gt 0 ] || parts=(squad-generator squad fine-tuning metaicl k-shot msc forgetting needle)
genadapter=${GENADAPTER:-genadapter}
only=${METHODS:-}
chosen=(); [ -z "${GENERATOR:-}" ] || chosen=(--generator "$GENERATOR")

squad=(--data "$data/squad/dev-v1.1-a.json.zst" --context-tokens 512,1024,2048,4096
       --train-data "$data/squad/train-subset-v1.1.json.zst" --train-data "$data/squad/train-extra.jsonl.zst")
# Learning rates: benchmarks/fine_tuning_rates.py.
fitting=(--num-shots 0 --max-pairs 1280 --fine-tuning-wording "question and answer"
         --epochs sft-full=2 --epochs sft-lora=2 --fit-batch sft-full=16 --fit-batch sft-lora=16
         --learning-rate sft-full=5e-5 --learning-rate sft-lora=1e-3)
tasks=ai2_arc,codah,commonsense_qa,financial_phrasebank,glue-mrpc,glue-rte,medical_questions_pairs,openbookqa
tasks+=,superglue-cb,tweet_eval-hate,tweet_eval-stance_atheism

for part in "${parts[@]}"; do
  case $part in
    squad-generator)
      for sizes in "512,1024 50" "2048,4096 20"; do
        $genadapter eval document-qa --data "$data/squad/dev-v1.1-a.json.zst" --context-tokens "${sizes% *}" \
          --max-contexts "${sizes#* }" --limit 400 --methods generative-adapter "${chosen[@]}" \
          --output "$output/squad-generator"
      done ;;
    squad)
      $genadapter eval document-qa "${squad[@]}" --max-contexts 8 --limit 64 --choice-contexts 4 --choice-limit 24 \
        --methods "${only:-closed-book,generative-adapter,full-context-cached,full-context}" "${chosen[@]}" --output "$output/squad" ;;
    fine-tuning)
      $genadapter eval document-qa "${squad[@]}" "${fitting[@]}" --max-contexts 8 --limit 64 \
        --methods sft-full,sft-lora --output "$output/squad-sft"
      $genadapter eval document-qa "${squad[@]}" "${fitting[@]}" --max-contexts 4 --limit 32 \
        --methods cpt-full,cpt-lora --learning-rate cpt-full=5e-5 --learning-rate cpt-lora=1e-3 \
        --epochs cpt-full=5 --epochs cpt-lora=5 --output "$output/squad-sft" ;;
    metaicl)
      $genadapter eval metaicl --data "$data/metaicl/test" --tasks "$tasks" --shots 1,2,4,8,16 --draws 13,21 --limit 16 \
        --methods "${only:-closed-book,generative-adapter,full-context-cached}" "${chosen[@]}" --output "$output/metaicl" ;;
    k-shot)
      $genadapter eval metaicl --data "$data/metaicl/test" --tasks "$tasks" --shots 16 --draws 13 --limit 16 \
        --methods k-shot-full --first-wording --fine-tuning-wording "demonstrations alone" \
        --learning-rate k-shot-full=5e-5 --epochs k-shot-full=8 \
        --output "$output/metaicl-k-shot" ;;
    msc)
      $genadapter eval personalisation --data "$data/conv/test/msc_test-a.jsonl.zst" \
        --train-data "$data/conv/train/msc_valid.jsonl.zst" --max-contexts 32 --limit 64 \
        --choice-contexts 6 --choice-limit 24 \
        --methods "${only:-closed-book,generative-adapter,full-context-cached,full-context}" "${chosen[@]}" --output "$output/msc" ;;
    forgetting)
      $genadapter eval forgetting --data "$data/squad/dev-v1.1-a.json.zst" --text "$data/pretrain/valid-a.jsonl.zst" \
        --context-tokens 512 --max-contexts 8 --limit 48 --unrelated 48 --segments 16 --segment-tokens 256 \
        --text-contexts 6 --methods generative-adapter "${chosen[@]}" --output "$output/forgetting" ;;
    needle)
      $genadapter eval needle --text "$data/pretrain/valid-a.jsonl.zst" --lengths 256,512,1024 --depths 0,0.5,1 \
        --draws 0,1,2 --methods "${only:-closed-book,generative-adapter,full-context-cached}" "${chosen[@]}" --output "$output/needle" ;;
    *) echo "unknown part: $part" >&2; exit 2 ;;
  esac
done
