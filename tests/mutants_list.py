# ruff: noqa: E501
"""Edits that break the code, for mutants.py: (file, old text, new text, tests that must notice, what it breaks).

The old text occurs exactly once in its file, and every edit leaves a module that can be parsed. Name the tests as
narrowly as possible: they run for each edit. A sixth field says why no test can notice an edit, e.g. because the broken
code does the same; without it an edit that survives is a fault of the tests.
"""

MUTANTS = [
    (
        "cir_cot/training/group_policy.py",
        "others[columns] = -torch.inf",
        "others[columns[:1]] = -torch.inf",
        [
            "tests/training/test_refine.py::test_ranks_count_ties_against_the_target_and_no_other_target"
        ],
        "a query with several targets is never first",
    ),
    (
        "cir_cot/training/refine.py",
        "        self.head.requires_grad_(False)\n",
        "",
        [
            "tests/training/test_refine.py::test_a_step_starts_at_the_start_and_moves_the_adapter_alone"
        ],
        "the embedder of the reward is trained",
    ),
    (
        "cir_cot/training/refine.py",
        ".splitlines()[: self.step]",
        ".splitlines()",
        [
            "tests/training/test_refine.py::test_a_killed_run_goes_on_bitwise_and_the_result_is_a_retriever"
        ],
        "a resumed run logs steps twice",
    ),
    (
        "cir_cot/training/refine.py",
        'held.get("arguments") != asked',
        "not held",
        ["tests/training/test_refine.py::test_folders_of_others_are_refused"],
        "a run goes on with other settings",
    ),
    (
        "cir_cot/training/group_policy.py",
        "1 / (1 + (others >= best).sum())",
        "1 / (1 + (others > best).sum())",
        [
            "tests/training/test_refine.py::test_ranks_count_ties_against_the_target_and_no_other_target"
        ],
        "a tie is a hit",
    ),
    (
        "cir_cot/training/group_policy.py",
        "centred / (groups.std(dim=1, keepdim=True) + SPREAD)",
        "centred",
        ["tests/training/test_refine.py::test_advantages_are_normalised_within_a_query"],
        "rewards are not normalised",
    ),
    (
        "cir_cot/training/group_policy.py",
        "gain = torch.minimum(ratio * advantage, bounded * advantage)",
        "gain = ratio * advantage",
        [
            "tests/training/test_refine.py::test_the_ratio_is_clipped_on_the_side_of_gain_and_the_divergence_is_k3"
        ],
        "the ratio has no bound",
    ),
    (
        "cir_cot/training/group_policy.py",
        "gap = start - new",
        "gap = new - start",
        [
            "tests/training/test_refine.py::test_the_ratio_is_clipped_on_the_side_of_gain_and_the_divergence_is_k3"
        ],
        "the divergence is of the wrong direction",
    ),
    (
        "cir_cot/heads/grammar.py",
        "row.chosen.append(len(row.ids))",
        "row.chosen.append(len(row.ids) - 1)",
        ["tests/training/test_refine.py::test_only_tokens_that_the_model_chose_carry_the_loss"],
        "prescribed tokens are learned",
    ),
    (
        "cir_cot/training/refine.py",
        "seeds = [seed_of(plan.seed, self.step, row) for row in range(len(records))]",
        "seeds = [seed_of(id(self), self.step, row) for row in range(len(records))]",
        [
            "tests/training/test_refine.py::test_a_killed_run_goes_on_bitwise_and_the_result_is_a_retriever"
        ],
        "a resumed run draws other chains",
    ),
    (
        "cir_cot/training/refine.py",
        "self.optimizer.state[parameter] = state",
        "pass",
        [
            "tests/training/test_refine.py::test_a_killed_run_goes_on_bitwise_and_the_result_is_a_retriever"
        ],
        "a resumed run forgets Adam's moments",
    ),
    (
        "cir_cot/search/watch.py",
        "if now == taken_in or not settled:",
        "if now == taken_in:",
        ["tests/search/test_watch.py::test_a_change_is_taken_in_once_when_it_has_settled"],
        "a half-written file is read",
    ),
    (
        "cir_cot/search/watch.py",
        "            continue\n        taken_in = now\n",
        "            pass\n        taken_in = now\n",
        [
            "tests/search/test_watch.py::test_an_update_that_fails_is_said_once_and_tried_again_at_each_look"
        ],
        "a change that met a locked index is never taken in",
    ),
    (
        "cir_cot/search/watch.py",
        "        taken_in = now\n",
        "",
        ["tests/search/test_watch.py::test_a_change_is_taken_in_once_when_it_has_settled"],
        "the index is updated at every look",
    ),
    (
        "cir_cot/search/watch.py",
        "(facts.st_size, facts.st_mtime_ns, facts.st_ino)",
        "(0, 0, 0)",
        ["tests/search/test_watch.py::test_a_picture_that_was_replaced_is_a_change"],
        "a replaced picture is not noticed",
    ),
    (
        "cir_cot/search/search.py",
        "if read_metadata(self.folder) == self.index.metadata:",
        "if read_metadata(self.folder):",
        ["tests/search/test_watch.py::test_the_command_follows_the_folder_and_a_search_notices"],
        "a search never notices an update",
    ),
    (
        "cir_cot/search/search.py",
        "opened.check(self.retriever, str(self.folder))",
        "pass",
        ["tests/search/test_watch.py::test_an_index_of_another_retriever_is_not_taken_in"],
        "an index of another retriever is searched",
    ),
    (
        "eval/build_index.py",
        'if not 0 < value < float("inf"):',
        "if value < 0:",
        ["tests/search/test_watch.py::test_seconds_that_are_none_are_refused"],
        "a watch without a pause",
    ),
    (
        "cir_cot/data/triplets.py",
        'f"-{variant}" if variant else ""',
        '""',
        [
            "tests/data/test_edit_sentences.py::test_sentences_differ_within_a_pair_and_a_seed_repeats_them"
        ],
        "two queries have one id",
    ),
    (
        "cir_cot/data/edit_sentences.py",
        'if len(beyond) == 1 else "more to"',
        'if beyond else "more to"',
        ["tests/data/test_edit_sentences.py::test_each_kind_of_column_has_its_own_sentences"],
        "longer asks for every value beyond, and one is the answer",
    ),
    (
        "cir_cot/data/edit_sentences.py",
        "upwards = column.values.index(new) > place",
        "upwards = column.values.index(new) < place",
        ["tests/data/test_edit_sentences.py::test_each_kind_of_column_has_its_own_sentences"],
        "longer means shorter",
    ),
    (
        "cir_cot/data/edit_sentences.py",
        "tuple(value for value in scale if value in lowered)",
        "tuple(lowered)",
        ["tests/data/test_edit_sentences.py::test_kinds_follow_from_names_and_values"],
        "a scale has the order of the file",
    ),
    (
        "cir_cot/data/edit_sentences.py",
        "if place is not None and (place not in PLACES or form or conversion):",
        "if place is not None and place not in PLACES:",
        ["tests/data/test_edit_sentences.py::test_bad_templates_are_named"],
        "a template may convert its values",
    ),
    (
        "cir_cot/data/edit_sentences.py",
        "found = list(dict.fromkeys(self._forms(changes[0])))",
        "found = self._forms(changes[0]) * 2",
        [
            "tests/data/test_edit_sentences.py::test_sentences_differ_within_a_pair_and_a_seed_repeats_them"
        ],
        "a pair has one sentence twice",
    ),
    (
        "cir_cot/data/edit_sentences.py",
        "own = own.get(change.new)",
        "own = None",
        ["tests/data/test_edit_sentences.py::test_own_templates_replace_those_of_their_columns"],
        "a user's sentences for a value are ignored",
    ),
    (
        "cir_cot/training/given_rows.py",
        "picture.tobytes() + repr((picture.mode, picture.size)).encode()",
        "repr((picture.mode, picture.size, id(picture))).encode()",
        [
            "tests/training/test_from_python.py::test_equal_pictures_share_an_id_and_different_ones_do_not"
        ],
        "two rows that show one picture are each other's negatives",
    ),
    (
        "cir_cot/training/given_rows.py",
        "            check_size(*picture.size, where)\n",
        "",
        ["tests/training/test_from_python.py::test_a_row_that_cannot_be_used_is_named"],
        "a picture of 4000 x 3 ends the training in the processor",
    ),
    (
        "cir_cot/training/given_rows.py",
        "held = held.cast_column(name, Column(decode=False))",
        "pass",
        ["tests/training/test_from_python.py::test_a_dataset_keeps_its_pictures_encoded"],
        "all pictures of a dataset are decoded into memory, past the limits",
    ),
    (
        "cir_cot/training/given_rows.py",
        "if not record.targets:",
        "if False:",
        ["tests/training/test_from_python.py::test_a_row_that_cannot_be_used_is_named"],
        "a row without a target fails in the middle of training",
    ),
    (
        "cir_cot/training/given_rows.py",
        "return self._keep(str(path.resolve()), path.resolve())",
        "return self._keep(str(picture), path)",
        ["tests/training/test_from_python.py::test_pictures_are_taken_as_pictures_paths_or_bytes"],
        "a file under two names is two pictures",
    ),
    (
        "cir_cot/training/from_python.py",
        "if name in OF_FILES:",
        "if False:",
        ["tests/training/test_from_python.py::test_an_argument_that_cannot_be_used_is_named"],
        "an argument that names files is ignored",
    ),
    (
        "cir_cot/training/from_python.py",
        "return head.eval()",
        "return head",
        ["tests/training/test_from_python.py::test_a_call_trains_what_the_recipe_trains_on_files"],
        "the trained retriever encodes with dropout",
    ),
    (
        "cir_cot/search/answer.py",
        'caption = f"{rank}. {escape(name)} ({score:.3f})"',
        'caption = f"{rank}. {name} ({score:.3f})"',
        ["tests/search/test_answer.py"],
        "a file's name is HTML in a notebook",
    ),
    (
        "cir_cot/evaluation/results.py",
        "ranks = [ranking.index(name) + 1 for name in record.targets if name in ranking]",
        "ranks = [ranking.index(name) for name in record.targets if name in ranking]",
        ["tests/evaluation/test_evaluate.py::test_a_result_is_a_data_frame_and_a_table"],
        "ranks in a data frame begin at 0",
    ),
    (
        "cir_cot/search/search.py",
        "            root, {name: str(file.relative_to(root)) for name, file in files.items()}",
        "            root, {name: file.name for name, file in files.items()}",
        [
            "tests/search/test_search.py::test_pictures_of_any_folders_are_searched_without_an_index_folder"
        ],
        "files of several folders are looked for in one",
    ),
    (
        "cir_cot/images.py",
        '            if picture.mode == "F":',
        "            if False:",
        ["tests/test_images.py::test_pixels_of_floating_point_are_refused_not_read_as_black"],
        "pixels of floating point are black",
    ),
    (
        "cir_cot/training/run.py",
        "    if args.lora_r not in (stored, default):",
        "    if False:",
        ["tests/training/test_sft.py::test_full_fine_tuning_leaves_a_whole_checkpoint"],
        "an adapter that is asked for is silently left out",
    ),
    (
        "cir_cot/search/payload_filter.py",
        "    strange = [key for key in where if key not in known]",
        "    strange: list[str] = []",
        ["tests/search/test_search.py::test_a_filter_s_unknown_key_is_named"],
        "a mistyped key of a filter is silent",
    ),
    (
        "eval/search.py",
        "    return [one or next(answers).as_dict() for one in found]",
        "    return [next(answers).as_dict() for _ in asked]",
        [
            "tests/search/test_search.py::test_a_query_that_cannot_be_asked_has_its_error_and_the_others_go_on"
        ],
        "answers behind a bad query have other ids",
    ),
    (
        "cir_cot/chains/journal.py",
        "        if old != new:",
        "        if True:",
        ["tests/chains/test_journal.py::test_settings_that_differ_are_named_with_both_values"],
        "settings that agree are named as different",
    ),
    (
        "data_gen/annotate.py",
        "return PROBLEMS if stopped or job.quarantined else DONE",
        "return PROBLEMS if stopped else DONE",
        [
            "tests/chains/test_annotate.py::test_a_picture_that_cannot_be_read_is_a_row_in_quarantine"
        ],
        "a job with rows in quarantine looks complete",
    ),
    (
        "cir_cot/evaluation/encode_ahead.py",
        "            if len(waiting) > AHEAD:",
        "            if len(waiting) > 5 * AHEAD:",
        ["tests/evaluation/test_encode_ahead.py"],
        "all pictures of a gallery are in memory",
    ),
    (
        "cir_cot/evaluation/encode_ahead.py",
        "    if len(vectors) != count:",
        "    if False:",
        ["tests/evaluation/test_encode_ahead.py"],
        "a picture without a vector shifts those behind it",
    ),
    (
        "cir_cot/chains/self_teacher.py",
        "one.rank < without or one.rank == 1",
        "one.rank <= without",
        [
            "tests/chains/test_self_teacher.py::test_a_chain_must_rank_the_target_better_than_none_or_first_as_before"
        ],
        "a chain that helps nothing is kept",
    ),
    (
        "cir_cot/chains/self_teacher.py",
        'found.pop("length", None)',
        "found.clear()",
        ["tests/chains/test_self_teacher.py::test_filters_apply_but_that_of_length"],
        "no filter applies to self-taught chains",
    ),
    (
        "cir_cot/chains/self_teacher.py",
        'found.pop("length", None)',
        'found.pop("loop", None)',
        ["tests/chains/test_self_teacher.py::test_filters_apply_but_that_of_length"],
        "short self-taught chains are rejected",
    ),
    (
        "cir_cot/chains/self_teacher.py",
        "(one.rank, one.length)",
        "(one.rank,)",
        [
            "tests/chains/test_self_teacher.py::test_the_best_rank_is_kept_and_the_shortest_of_equals"
        ],
        "the first of equals is kept, not the shortest",
    ),
    (
        "cir_cot/chains/self_teacher.py",
        "(scores >= best)",
        "(scores > best)",
        [
            "tests/chains/test_self_teacher.py::test_ranks_count_ties_against_the_target_and_no_other_target"
        ],
        "ties count for the target",
    ),
    (
        "cir_cot/chains/self_teacher.py",
        "scores[:, targets] = -np.inf",
        "pass",
        [
            "tests/chains/test_self_teacher.py::test_ranks_count_ties_against_the_target_and_no_other_target"
        ],
        "other targets count against a query",
    ),
    (
        "cir_cot/chains/self_teacher.py",
        "count * answers)",
        "0)",
        [
            "tests/chains/test_self_teacher.py::test_a_budget_ends_the_job_and_a_larger_one_continues_it"
        ],
        "a budget forgets the chains to come",
    ),
    (
        "cir_cot/profiling/fake_processes.py",
        '"allreduce_": lambda n: 2 * (n - 1) / n,',
        '"allreduce_": lambda n: (n - 1) / n,',
        ["tests/profiling/test_fake_processes.py::test_what_collectives_send_and_who_takes_part"],
        "an all-reduce goes round once",
    ),
    (
        "cir_cot/profiling/fake_processes.py",
        "with self.fake_mode if fake else nullcontext():",
        "with nullcontext():",
        [
            "tests/profiling/test_fake_processes.py::test_two_processes_that_share_weights_need_and_send_what_was_planned"
        ],
        "gathered weights are real",
    ),
    (
        "cir_cot/peak_bytes.py",
        "meter._hold(storage._cdata, storage.nbytes())",
        "pass",
        ["tests/profiling/test_counters.py"],
        "a storage that is emptied counts on",
    ),
    (
        "cir_cot/profiling/fake_passes.py",
        "new * (first.seconds + last.seconds) / 2",
        "new * first.seconds",
        ["tests/profiling/test_plan.py::test_decoding_needs_what_its_steps_do"],
        "all decoding steps are as cheap as the first",
    ),
    (
        "cir_cot/profiling/fake_head.py",
        'model.set_attn_implementation("eager")',
        "pass",
        ["tests/profiling/test_plan.py::test_a_plain_step_needs_what_was_planned"],
        "attention is planned as sdpa, whatever is configured",
    ),
    (
        "cir_cot/cards.py",
        r"\b{key.partition('-')[0]}\b",
        "{key.partition('-')[0]}",
        ["tests/test_cards.py"],
        "an L40S is taken for an L4",
    ),
    (
        "cir_cot/training/validation.py",
        "def _load_best_model(self) -> None:",
        "def _load_best(self) -> None:",
        ["tests/training/test_validation.py::test_the_best_checkpoint_is_kept_and_loaded"],
        "the best checkpoint is looked for where it was written",
    ),
    # ---- .github/workflows/test.yml
    (
        ".github/workflows/test.yml",
        "contents: read",
        "contents: write",
        [
            "tests/test_versions.py::test_workflows_may_only_read_and_try_every_python_that_is_supported"
        ],
        "a workflow may write to the repository",
    ),
    # ---- Makefile
    (
        "Makefile",
        "$(STAMP): setup.cfg pyproject.toml constraints.txt",
        "$(STAMP): setup.cfg pyproject.toml",
        [
            "tests/test_versions.py::test_make_installs_the_pinned_versions_and_again_when_they_change"
        ],
        "new pins are not installed",
    ),
    (
        "Makefile",
        'pip install -c constraints.txt -e ".[test]"',
        'pip install -e ".[test]"',
        [
            "tests/test_versions.py::test_make_installs_the_pinned_versions_and_again_when_they_change"
        ],
        "make installs untested versions",
    ),
    # ---- cir_cot/heads/publish.py and card.py
    (
        "cir_cot/heads/publish.py",
        "if not path.resolve().is_relative_to(folder.resolve()):",
        "if False:",
        [
            "tests/heads/test_publish.py::test_what_may_not_be_published_is_refused_before_anything_is_sent"
        ],
        "a link sends a file from outside the folder",
    ),
    (
        "cir_cot/heads/publish.py",
        "if private and not api.model_info(to).private:",
        "if False:",
        ["tests/heads/test_publish.py::test_private_never_means_public"],
        "--private writes into a public repository",
    ),
    (
        "cir_cot/heads/publish.py",
        "if not SHARD.fullmatch(name) or not (folder / name).is_file():",
        "if False:",
        ["tests/heads/test_publish.py::test_shards_are_those_that_the_index_lists"],
        "an index may name any file to send",
    ),
    (
        "cir_cot/heads/publish.py",
        "        del contents[CARD_FILE]\n",
        "        pass\n",
        ["tests/heads/test_publish.py::test_a_card_by_hand_is_never_replaced"],
        "a card on the hub that a person wrote is replaced",
    ),
    (
        "cir_cot/heads/publish.py",
        'config["base_model_name_or_path"] = facts["backbone"].partition("@")[0]',
        "pass",
        ["tests/heads/test_publish.py::test_the_card_says_what_is_recorded_and_no_path"],
        "a path of this machine is published",
    ),
    (
        "cir_cot/heads/publish.py",
        "if not NAME.fullmatch(name) or Path(name).exists():",
        "if False:",
        [
            "tests/heads/test_publish.py::test_what_may_not_be_published_is_refused_before_anything_is_sent"
        ],
        "a retriever whose base nobody else has is published",
    ),
    (
        "cir_cot/heads/base.py",
        'if not card.exists() or is_generated(card.read_text(encoding="utf-8", errors="replace")):',
        "if True:",
        ["tests/heads/test_publish.py::test_a_card_by_hand_is_never_replaced"],
        "saving replaces a card that a person wrote",
    ),
    (
        "cir_cot/heads/card.py",
        "return found is not None and found[1] == _digest(text[: found.start()])",
        "return found is not None",
        ["tests/heads/test_publish.py::test_an_edited_card_counts_as_written_by_hand"],
        "an edited card counts as generated",
    ),
    (
        "cir_cot/heads/card.py",
        'if row.get("explanation") and not row.get("flag"):',
        'if row.get("explanation"):',
        ["tests/heads/test_publish.py::test_the_card_says_what_is_recorded_and_no_path"],
        "the example is a chain that something is wrong with",
    ),
    (
        "cir_cot/heads/card.py",
        "if Path(measured).name != Path(model).resolve().name:",
        "if False:",
        ["tests/heads/test_publish.py::test_results_of_another_model_are_refused"],
        "another model's numbers are published",
    ),
    (
        "cir_cot/heads/card.py",
        'folder = Path(str(arguments.get("model")))',
        "break",
        ["tests/heads/test_publish.py::test_earlier_stages_are_looked_up_for_data_and_base"],
        "the data of earlier stages is left out",
    ),
    # ---- cir_cot/hub.py
    (
        "cir_cot/training/run.py",
        "if not holds(args.model, SETTINGS_FILE):",
        "if not (Path(args.model) / SETTINGS_FILE).is_file():",
        ["tests/test_hub.py::test_training_begins_from_a_name"],
        "a recipe takes a retriever of the hub for a base",
    ),
    (
        "cir_cot/models/checkpoint.py",
        'return address.repository, {"revision": address.revision}',
        "return address.repository, {}",
        ["tests/test_hub.py::test_training_begins_from_a_name"],
        "the revision of a base is ignored",
    ),
    (
        "cir_cot/hub.py",
        "if text == TINY_BASE or not NAME.fullmatch(text)",
        "if not NAME.fullmatch(text)",
        ["tests/test_hub.py::test_the_shipped_base_is_never_looked_up"],
        "the hub is asked for the base that the package ships",
    ),
    (
        "cir_cot/hub.py",
        "if not revision and Path(repository).parent.is_dir():",
        "if False:",
        ["tests/test_hub.py::test_a_mistyped_path_beside_a_folder_is_never_looked_up"],
        "a mistyped path loads a stranger's model",
    ),
    (
        "cir_cot/hub.py",
        "allow_patterns=list(PATTERNS),",
        "allow_patterns=None,",
        ["tests/test_hub.py::test_an_adapter_and_its_base_are_loaded_by_name"],
        "code and pickled weights are downloaded",
    ),
    (
        "cir_cot/hub.py",
        "ignore_patterns=[SUBFOLDERS],",
        "ignore_patterns=None,",
        ["tests/test_hub.py::test_an_adapter_and_its_base_are_loaded_by_name"],
        "subfolders are downloaded",
    ),
    (
        "cir_cot/hub.py",
        "            revision=address.revision,\n",
        "",
        ["tests/test_hub.py::test_a_revision_is_a_branch_a_tag_or_a_commit"],
        "the revision is ignored",
    ),
    # ---- cir_cot/models/adapter.py
    (
        "cir_cot/models/adapter.py",
        "return where((x == token)[..., None], row.to(out.dtype), out)",
        "return out",
        ["tests/models/test_backbone.py::test_the_trained_row_computes_what_peft_computes"],
        "the trained row is not read",
    ),
    (
        "cir_cot/models/adapter.py",
        "        out[..., token] = (x @ row.to(x.dtype)).to(out.dtype)\n",
        "",
        ["tests/models/test_backbone.py::test_the_trained_row_computes_what_peft_computes"],
        "the trained row is not written",
    ),
    (
        "cir_cot/models/adapter.py",
        '["embed_tokens"] if model.config.tie_word_embeddings else',
        '["embed_tokens"] if True else',
        ["tests/models/test_backbone.py::test_with_lora_only_the_adapters_and_the_row_change"],
        "an untied head's row is not trained",
    ),
    (
        "cir_cot/models/adapter.py",
        '    if kind != "LORA":',
        "    if False:",
        ["tests/models/test_backbone.py::test_a_foreign_adapter_is_refused"],
        "another kind of adapter is loaded",
    ),
    (
        "cir_cot/models/adapter.py",
        "    if rows - {token}:",
        "    if False:",
        ["tests/models/test_backbone.py::test_a_foreign_adapter_is_refused"],
        "an adapter that trains another row is loaded",
    ),
    (
        "cir_cot/models/adapter.py",
        'rf"model\\.language_model\\.layers',
        'rf".*(?:layers|blocks)',
        [
            "tests/models/test_real_configs.py::test_lora_hits_the_language_models_linear_layers_and_nothing_else",
            "tests/models/test_backbone.py::test_with_lora_only_the_adapters_and_the_row_change",
        ],
        "LoRA hits the vision tower",
    ),
    # ---- cir_cot/chains/annotate.py
    (
        "cir_cot/chains/annotate.py",
        '        job.quarantine(task.name, f"picture: {error}", 0, "")\n        return',
        "        raise",
        [
            "tests/chains/test_annotate.py::test_a_picture_that_cannot_be_read_is_a_row_in_quarantine"
        ],
        "an unreadable picture ends the job",
    ),
    (
        "cir_cot/chains/annotate.py",
        "min(concurrency, len(tasks))",
        "1",
        ["tests/chains/test_annotate.py::test_no_worker_waits_for_another"],
        "one row at a time",
    ),
    (
        "cir_cot/chains/annotate.py",
        'return "the budget is spent" if spent.is_set() else ""',
        'return ""',
        ["tests/chains/test_annotate.py::test_a_budget_stops_the_job_and_a_larger_one_goes_on"],
        "a spent budget counts as done",
    ),
    # ---- cir_cot/chains/answers.py
    (
        "cir_cot/chains/answers.py",
        '    return text[3:-3].removeprefix("json").strip()',
        "    return text[3:-3].strip()",
        ["tests/chains/test_teacher.py::test_a_fence_around_the_whole_answer_is_removed"],
        "a fence that names JSON stays in the answer",
    ),
    (
        "cir_cot/chains/answers.py",
        "if len(text) < 6 or not (",
        "if not (",
        ["tests/chains/test_teacher.py::test_a_fence_around_the_whole_answer_is_removed"],
        "five backticks count as a whole fence",
    ),
    (
        "cir_cot/chains/answers.py",
        "    return after.strip() if end else before",
        "    return after.strip()",
        [
            "tests/chains/test_teacher.py::test_scores_are_looked_for_in_linear_time",
            "tests/chains/test_teacher.py::test_a_hostile_answer_is_refused_by_name_in_every_mode",
            "tests/chains/test_teacher.py::test_thinking_is_removed_only_where_it_ends",
        ],
        "an unfinished thought is taken for an empty answer",
    ),
    (
        "cir_cot/chains/answers.py",
        'numbers = (number.rstrip(".") for',
        "numbers = (number for",
        ["tests/chains/test_teacher.py::test_a_score_is_a_number_from_0_to_1"],
        "a score with a full stop behind is none",
    ),
    (
        "cir_cot/chains/answers.py",
        "|1(?:\\.0+)?|",
        "|1(?:\\.\\d+)?|",
        ["tests/chains/test_teacher.py::test_what_is_no_score_is_no_score"],
        "a score of 1.5 passes",
    ),
    # ---- cir_cot/models/backbone.py
    (
        "cir_cot/models/architectures.py",
        'return "cache" if "cache" in',
        'return "past_key_values" if "cache" in',
        [
            "tests/models/test_backbone.py::test_the_cache_is_passed_under_the_name_that_the_forward_has"
        ],
        "the forward is called by the deprecated name",
    ),
    (
        "cir_cot/models/architectures.py",
        'parameters else "past_key_values"',
        'parameters else "cache"',
        [
            "tests/models/test_backbone.py::test_the_cache_is_passed_under_the_name_that_the_forward_has"
        ],
        "an older transformers gets a name that it does not have",
    ),
    (
        "cir_cot/models/backbone.py",
        "if cache is not None and cache.get_seq_length():",
        "if False:",
        ["tests/models/test_backbone.py::test_a_filled_cache_needs_positions"],
        "positions of new tokens start at 0 although a cache is filled",
    ),
    (
        "cir_cot/models/backbone.py",
        "positions.amax(dim=(0, 2)) + 1)",
        "positions.amax(dim=(0, 2)))",
        ["tests/models/test_backbone.py::test_positions_of_a_picture_count_rows_and_columns"],
        "the next token has the position of the last one",
    ),
    (
        "cir_cot/models/backbone.py",
        "visual.requires_grad_(not freeze_vision)",
        "visual.requires_grad_(freeze_vision)",
        ["tests/models/test_backbone.py::test_full_fine_tuning_changes_all_but_a_frozen_tower"],
        "the frozen tower trains and the other does not",
    ),
    (
        "cir_cot/models/special_tokens.py",
        "layer.weight[:count].float()",
        "layer.weight[:1].float()",
        [
            "tests/models/test_backbone.py::test_the_token_takes_a_spare_row_at_the_mean_of_the_others"
        ],
        "the retrieval token starts as a copy of the first token",
    ),
    (
        "cir_cot/models/special_tokens.py",
        "tokenizer.add_tokens([RET], special_tokens=True)",
        "tokenizer.add_tokens([RET], special_tokens=False)",
        [
            "tests/models/test_backbone.py::test_the_token_is_one_special_token_and_is_plain_text_in_user_text"
        ],
        "a user's text can hold the retrieval token",
    ),
    (
        "cir_cot/models/special_tokens.py",
        "pad_to_multiple_of=64",
        "pad_to_multiple_of=1",
        ["tests/models/test_backbone.py::test_the_matrix_grows_only_when_no_row_is_spare"],
        "the resized matrix has an odd number of rows",
    ),
    (
        "cir_cot/models/backbone.py",
        'cache.reorder_cache(cast("torch.LongTensor", rows))',
        "pass",
        ["tests/models/test_backbone.py::test_decoding_with_the_cache_equals_the_full_forward"],
        "rows that have finished stay in the cache",
    ),
    (
        "cir_cot/models/special_tokens.py",
        "if ret_id >= model.get_input_embeddings()",
        "if ret_id > model.get_input_embeddings()",
        ["tests/models/test_backbone.py::test_the_matrix_grows_only_when_no_row_is_spare"],
        "the token has no row when none is spare",
    ),
    (
        "cir_cot/models/special_tokens.py",
        "layer.weight[:count].float().mean(dim=0)",
        "layer.weight.float().mean(dim=0)",
        [
            "tests/models/test_backbone.py::test_the_token_takes_a_spare_row_at_the_mean_of_the_others"
        ],
        "spare rows count in the mean",
    ),
    (
        "cir_cot/models/special_tokens.py",
        "    if RET in added:\n        return added[RET]\n",
        "",
        ["tests/models/test_backbone.py"],
        "a token that is there is set back to the mean",
    ),
    # ---- cir_cot/data/__init__.py
    (
        "cir_cot/data/shoes.py",
        '{"val": "eval",',
        '{"val": "train",',
        ["tests/data/test_datasets.py::test_shoes_pictures_are_found_by_name"],
        "Shoes val is its training split",
    ),
    (
        "cir_cot/data/shoes.py",
        "if target in listed and start in listed:",
        "if target in listed:",
        ["tests/data/test_datasets.py::test_shoes_pictures_are_found_by_name"],
        "a Shoes reference may be outside the gallery",
    ),
    (
        "cir_cot/data/circo.py",
        'images = [entry["target_img_id"], *entry["gt_img_ids"]]',
        'images = [*entry["gt_img_ids"], entry["target_img_id"]]',
        ["tests/data/test_datasets.py::test_circo_has_its_main_target_first"],
        "R@k counts another target of CIRCO",
    ),
    (
        "cir_cot/data/circo.py",
        'return {str(image["id"]): image["file_name"] for image in images}',
        'return {str(image["id"]): image["file_name"] for image in sorted(images, key=lambda one: one["id"])}',
        ["tests/data/test_datasets.py::test_circo_gallery_is_what_the_info_file_lists"],
        "CIRCO's gallery is in another order",
    ),
    (
        "cir_cot/data/cirr.py",
        'weights=weights if labels == "soft" else None',
        "weights=weights",
        [
            "tests/data/test_datasets.py::test_cirr_layouts",
            "tests/evaluation/test_evaluate.py::test_cirr_subset_recall_is_within_the_set",
        ],
        "hard labels are scored as graded ones",
        "with graded labels of 1 for the target alone the numbers are the same; the real ones need the annotation files",
    ),
    (
        "cir_cot/data/annotation_files.py",
        "        if record.id in seen:",
        "        if False:",
        ["tests/data/test_datasets.py::test_a_query_id_twice_is_refused"],
        "a query id twice",
    ),
    (
        "cir_cot/data/folder.py",
        "    if not records:\n",
        "    if records is None:\n",
        ["tests/data/test_datasets.py::test_an_empty_folder_dataset_is_refused"],
        "an empty dataset has no numbers",
    ),
    (
        "cir_cot/data/__init__.py",
        "        if option not in dataset.options:",
        "        if False:",
        ["tests/data/test_datasets.py::test_unknown_options_are_refused_with_the_known_ones"],
        "an unknown option is a TypeError",
    ),
    (
        "cir_cot/data/benchmark.py",
        "    if category is not None:\n",
        "    if False:\n",
        ["tests/data/test_datasets.py::test_unknown_options_are_refused_with_the_known_ones"],
        "a category that does not exist is ignored",
    ),
    (
        "cir_cot/data/circo.py",
        '[entry["target_img_id"], *entry["gt_img_ids"]]',
        '[*entry["gt_img_ids"], entry["target_img_id"]]',
        [
            "tests/data/test_datasets.py::test_the_first_target_of_circo_is_the_one_that_recall_counts"
        ],
        "R@k of CIRCO counts another target",
    ),
    # ---- cir_cot/training/memory.py
    (
        "cir_cot/training/memory.py",
        "sum(is_shrunk(one.height",
        "sum(not is_shrunk(one.height",
        ["tests/training/test_memory.py::test_what_is_counted"],
        "the estimate counts the pictures that stay as they are",
    ),
    (
        "cir_cot/training/memory.py",
        '"fits": cost.bytes * chunk <= room',
        '"fits": each * chunk < room',
        ["tests/training/test_memory.py::test_a_step_fits_up_to_the_very_last_byte"],
        "a step that just fits is refused",
    ),
    (
        "cir_cot/training/memory.py",
        "room = max(0, free - training)",
        "room = max(0, free - weights)",
        ["tests/training/test_memory.py::test_a_step_fits_up_to_the_very_last_byte"],
        "gradients are forgotten",
    ),
    # ---- cir_cot/chains/export.py
    (
        "cir_cot/chains/export.py",
        "    if id(record) in repeated:",
        "    if False:",
        ["tests/chains/test_chain_export.py::test_what_is_left_out_is_named"],
        "duplicates are exported",
    ),
    (
        "cir_cot/chains/export.py",
        "        if marker := MARKERS.search(text):",
        "        if marker := None:",
        ["tests/chains/test_chain_export.py::test_no_text_brings_a_marker_into_a_conversation"],
        "a text brings a picture's placeholder",
    ),
    (
        "cir_cot/chains/export.py",
        "for image in (record.reference, *record.targets):",
        "for image in (record.reference,):",
        ["tests/chains/test_chain_export.py::test_what_is_left_out_is_named"],
        "a missing target is exported",
    ),
    (
        "cir_cot/chains/card.py",
        "if count < most:",
        "if count <= most:",
        ["tests/chains/test_chain_export.py::test_the_card_states_the_hubs_kind_of_size"],
        "1,000 rows are called fewer than 1K",
    ),
    (
        "cir_cot/chains/export.py",
        'f"{record.source}/{record.id}" if record.source else record.id',
        "record.id",
        ["tests/chains/test_chain_export.py::test_llava"],
        "ids of two categories collide",
    ),
    (
        "cir_cot/chains/export.py",
        "    with replacing(path) as temporary:\n        Dataset",
        "    if temporary := path:\n        Dataset",
        [
            "tests/chains/test_chain_export.py::test_a_full_disk_is_one_line_and_leaves_no_half_of_a_file"
        ],
        "half a parquet file stays",
    ),
    (
        "cir_cot/chains/export.py",
        "if folder.exists() and any(folder.iterdir()):",
        "if False:",
        ["tests/chains/test_chain_export.py::test_unusable_requests_are_refused"],
        "an export is written among other files",
    ),
    # ---- cir_cot/chains/report.py
    (
        "cir_cot/chains/report.py",
        "width = -(-(max(values) - low + 1) // BINS)",
        "width = -(-(max(values) - low) // BINS) or 1",
        ["tests/chains/test_chain_report.py::test_a_histogram_holds_every_value_once"],
        "a histogram has a bin too many",
    ),
    (
        "cir_cot/chains/report.py",
        'f"{start}-{start + width - 1}"',
        'f"{start}-{start + width}"',
        ["tests/chains/test_chain_report.py::test_a_histogram_holds_every_value_once"],
        "ranges of a histogram overlap",
    ),
    (
        "cir_cot/chains/filters.py",
        "        if record.cot:\n            counts[",
        "        if record:\n            counts[",
        ["tests/chains/test_chain_report.py::test_teachers_are_counted"],
        "records without a chain have a teacher",
    ),
    (
        "cir_cot/chains/report.py",
        "FAILING if name else PASSING",
        "PASSING",
        ["tests/chains/test_chain_report.py"],
        "as many chains of each filter as pass",
    ),
    (
        "cir_cot/chains/report.py",
        "percent = 100 * count / total",
        "percent = count / total",
        ["tests/chains/test_chain_report.py"],
        "bars are a hundredth as long",
    ),
    (
        "cir_cot/chains/report.py",
        "cuts[0], cuts[9], cuts[18], max(values)",
        "cuts[0], cuts[8], cuts[18], max(values)",
        ["tests/chains/test_chain_report.py"],
        "the median is the 45th percentile",
    ),
    (
        "cir_cot/chains/report.py",
        "width = -(-(max(values) - low + 1) // BINS)",
        "width = max(1, (max(values) - low) // BINS)",
        ["tests/chains/test_chain_report.py::test_a_histogram_holds_every_value_once"],
        "a histogram with too many bars",
    ),
    (
        "cir_cot/chains/report.py",
        "random.Random(seed).sample",
        "random.Random(0).sample",
        ["tests/chains/test_chain_report.py::test_samples_are_the_same_with_the_same_seed"],
        "the seed of the shown chains",
    ),
    # ---- cir_cot/models/checkpoint.py
    (
        "cir_cot/models/checkpoint.py",
        'if size["longest_edge"] < area:',
        'if size["longest_edge"] <= area:',
        ["tests/models/test_backbone.py::test_pixel_bounds_are_set_and_saved"],
        "a bound of one visual token is refused",
    ),
    (
        "cir_cot/models/checkpoint.py",
        'if size["longest_edge"] < area:',
        "if False:",
        ["tests/models/test_backbone.py::test_pixel_bounds_are_set_and_saved"],
        "a bound below one visual token is exceeded in silence",
    ),
    (
        "cir_cot/models/checkpoint.py",
        'if size["shortest_edge"] > size["longest_edge"]:',
        'if size["shortest_edge"] >= size["longest_edge"]:',
        ["tests/models/test_backbone.py::test_pixel_bounds_are_set_and_saved"],
        "equal bounds are refused",
    ),
    (
        "cir_cot/models/checkpoint.py",
        "        if part in config and not (isinstance(config[part], dict) and config[part]):",
        "        if part in config and config[part] is False:",
        [
            "tests/models/test_damaged_retriever.py::test_a_part_of_config_json_that_is_empty_or_no_object_is_named"
        ],
        "the error names no key of config.json",
    ),
    (
        "cir_cot/models/checkpoint.py",
        "        if not hasattr(processor, part):",
        "        if False:",
        [
            "tests/models/test_damaged_retriever.py::test_a_damaged_file_is_refused_in_one_line[processor_config.json: class unknown]"
        ],
        "a checkpoint without image processor is a traceback",
    ),
    # ---- cir_cot/cli.py
    (
        "cir_cot/cli.py",
        "    except BrokenPipeError:\n        code = BROKEN_PIPE\n",
        "",
        ["tests/test_cli.py::test_a_reader_that_has_gone_ends_a_command_quietly"],
        "a closed pipe is an error",
    ),
    (
        "cir_cot/cli.py",
        "    _release(sys.stdout)\n",
        "",
        ["tests/test_cli.py::test_a_reader_that_has_gone_ends_a_command_quietly"],
        "Python complains at its end",
    ),
    (
        "cir_cot/cli.py",
        "    _release(sys.stderr)\n",
        "",
        [
            "tests/test_cli.py::test_a_full_disk_under_the_output_is_one_line",
            "tests/test_cli.py::test_a_reader_of_both_streams_that_has_gone_hides_no_exit_code",
        ],
        "a full disk under stderr changes the exit code",
    ),
    (
        "cir_cot/cli.py",
        "        sys.stdout.flush()  # here",
        "        pass  # here",
        ["tests/test_cli.py::test_a_full_disk_under_the_output_is_one_line"],
        "a full disk is told by nobody",
    ),
    (
        "cir_cot/cli.py",
        'sys.stdout.reconfigure(errors="backslashreplace")',
        "pass",
        ["tests/test_cli.py::test_letters_that_the_terminal_lacks_are_written_as_numbers"],
        "letters that the terminal lacks are a traceback",
    ),
    (
        "cir_cot/cli.py",
        "    except OSError as error:  # a missing",
        "    except FileNotFoundError as error:  # a missing",
        ["tests/test_cli.py::test_what_the_system_refuses_is_one_line_and_code_2"],
        "a full disk is a traceback",
    ),
    (
        "cir_cot/cli.py",
        "problem = error.strerror or str(error)",
        "problem = str(error.strerror)",
        ["tests/test_cli.py::test_what_the_system_refuses_is_one_line_and_code_2"],
        "an error without a number says None",
    ),
    (
        "cir_cot/cli.py",
        'meant = f"did you mean {near[0]!r}? " if near else ""',
        'meant = ""',
        ["tests/test_cli.py::test_a_mistyped_command_names_the_nearest"],
        "no command is suggested",
    ),
    (
        "cir_cot/cli.py",
        "{shown(name)} is no command",
        "{name!r} is no command",
        ["tests/test_cli.py::test_a_command_like_no_other_is_not_guessed"],
        "a long word floods the terminal",
    ),
    (
        "cir_cot/cli.py",
        "if sys.stdout is not None:",
        "if True:",
        ["tests/test_cli.py::test_a_command_without_an_output_works"],
        "a closed stdout is a traceback",
    ),
    (
        "cir_cot/cli.py",
        "INTERRUPTED = 130",
        "INTERRUPTED = 1",
        ["tests/test_cli.py::test_ctrl_c_in_a_running_process_is_code_130_and_one_line"],
        "Ctrl-C is another code",
    ),
    # ---- cir_cot/models/clip.py
    (
        "cir_cot/models/clip.py",
        "max(int((wanted - side) / 2), 0)",
        "max(round((wanted - side) / 2), 0)",
        ["tests/models/test_clip.py::test_target_pad_brings_a_long_picture_to_the_ratio"],
        "the padding is rounded up",
    ),
    (
        "cir_cot/models/clip.py",
        "max(width, height) / min(width, height) < ratio",
        "max(width, height) / min(width, height) < 2 * ratio",
        ["tests/models/test_clip.py::test_target_pad_brings_a_long_picture_to_the_ratio"],
        "pictures of 2 : 1 are not padded",
    ),
    (
        "cir_cot/models/clip.py",
        "split_special_tokens=True,",
        "split_special_tokens=False,",
        ["tests/models/test_clip.py::test_the_users_words_never_end_a_text_early"],
        "a user ends a text by a token",
    ),
    (
        "cir_cot/models/clip.py",
        'not frozen and not name.startswith("logit_")',
        "not frozen",
        [
            "tests/models/test_clip.py::test_a_frozen_encoder_has_no_gradients_and_a_trained_one_stays_in_eval_mode"
        ],
        "CLIP's own scale is trained",
    ),
    (
        "cir_cot/models/clip.py",
        "return super().train(False)",
        "return super().train(mode)",
        [
            "tests/models/test_clip.py::test_a_frozen_encoder_has_no_gradients_and_a_trained_one_stays_in_eval_mode"
        ],
        "dropout while CLIP is trained",
    ),
    (
        "cir_cot/models/clip.py",
        "        digest.update(json.dumps(self.inputs.settings(), sort_keys=True, default=str).encode())\n",
        "",
        ["tests/models/test_clip.py::test_identity_is_that_of_weights_preprocessing_and_words"],
        "the preprocessing does not tell caches apart",
    ),
    (
        "cir_cot/models/clip.py",
        "if pad_ratio and pad_ratio < 1:",
        "if pad_ratio and pad_ratio < 0:",
        ["tests/models/test_clip.py::test_unusable_options_are_named"],
        "a pad ratio below 1",
    ),
    (
        "cir_cot/models/clip.py",
        "truncation=True,",
        "truncation=False,",
        ["tests/models/test_clip.py::test_the_users_words_never_end_a_text_early"],
        "a text is longer than the tower reads",
    ),
    # ---- cir_cot/models/chat.py
    (
        "cir_cot/models/chat.py",
        "places[after:] += max(height, width) - height * width",
        "places[after:] += height - height * width",
        ["tests/models/test_backbone.py::test_the_encoder_counts_positions_as_the_model_does"],
        "text after a wide picture has the positions of its columns",
    ),
    (
        "cir_cot/models/chat.py",
        'start = 0 if self.side == "right" else mask.shape[1] - length',
        "start = 0",
        ["tests/models/test_backbone.py::test_the_encoder_counts_positions_as_the_model_does"],
        "rows that are padded on the left have the padding's positions",
    ),
    (
        "cir_cot/training/chunks.py",
        "value.shape[:2] == mask.shape",
        "value.shape == mask.shape",
        ["tests/training/test_gradcache.py"],
        "a chunk keeps the padding of its batch in its positions",
    ),
    (
        "cir_cot/models/vision_attention.py",
        "return dict.fromkeys(names, 0)",
        "return {}",
        ["tests/test_pretended_gpu.py"],
        "the longest window is read from the device",
    ),
    (
        "cir_cot/training/step_metrics.py",
        "lengths = [row_lengths(part).sum() for part in inputs if part is not None]",
        "lengths = [torch.tensor(row_lengths(part).sum().item()) for part in inputs if part is not None]",
        ["tests/test_pretended_gpu.py"],
        "the number of tokens is read from the device in every step",
    ),
    (
        "cir_cot/training/dataset.py",
        "self.targets = images if targets is None else targets",
        "self.targets = images",
        ["tests/models/test_foreign_space.py"],
        "targets are loaded from the references' store",
    ),
    (
        "cir_cot/training/dataset.py",
        "self.targets.load(record.targets[0])",
        "self.targets.load(record.targets[-1])",
        ["tests/models/test_chat.py"],
        "the last target is trained on",
    ),
    (
        "cir_cot/models/chat.py",
        "split_special_tokens=True)",
        "split_special_tokens=False)",
        [
            "tests/contract/test_retriever_contract.py::test_the_users_words_never_become_special_tokens"
        ],
        "users write special tokens",
    ),
    (
        "cir_cot/models/chat.py",
        "([IGNORE] * (len(row) - len(answer)) + list(answer))",
        "(list(row))",
        ["tests/models/test_chat.py"],
        "the prompt is supervised",
    ),
    (
        "cir_cot/models/chat.py",
        "self._pad([[1] * len(row) for row in rows], 0)",
        "self._pad([[1] * len(row) for row in rows], 1)",
        ["tests/models/test_chat.py"],
        "padding is attended to",
    ),
    (
        "cir_cot/models/chat.py",
        'pad if self.side == "right" else pad + row',
        'pad if self.side != "right" else pad + row',
        ["tests/models/test_chat.py"],
        "padding is on the other side",
    ),
    (
        "cir_cot/heads/chain_collator.py",
        "random.Random(row.draw).random() < self.chain_dropout",
        "random.Random(row.draw).random() > self.chain_dropout",
        [
            "tests/contract/test_retriever_contract.py::test_chain_dropout_drops_whole_chains_by_the_rows_own_draw"
        ],
        "chains are dropped the other way round",
    ),
    (
        "cir_cot/heads/chain_collator.py",
        "labels[torch.tensor([chain is None for chain in chains])] = IGNORE",
        "pass",
        [
            "tests/contract/test_retriever_contract.py::test_chain_dropout_drops_whole_chains_by_the_rows_own_draw"
        ],
        "a dropped chain supervises the retrieval token",
    ),
    (
        "cir_cot/heads/base.py",
        '"big") >> 1',
        '"big") >> 2',
        ["tests/models/test_chat.py"],
        "image numbers have 62 bits",
    ),
    (
        "cir_cot/data/scoring.py",
        "        if not record.targets:\n            raise",
        "        if False:\n            raise",
        ["tests/data/test_scoring.py", "tests/data/test_score_script.py"],
        "a record without target is an IndexError",
    ),
    (
        "cir_cot/heads/base.py",
        "    hashes = [[image_hash(image) for image in row.record.targets] for row in rows]",
        "    hashes = [[image_hash(image) for image in row.record.targets[:1]] for row in rows]",
        ["tests/training/test_trainer.py::test_a_querys_other_targets_are_no_negatives"],
        "a query's other targets are its negatives",
    ),
    (
        "cir_cot/training/step_losses.py",
        "ids.reshape(len(ids), -1)[:, 0]",
        "ids.reshape(len(ids), -1)[:, -1]",
        ["tests/training/test_trainer.py::test_a_querys_other_targets_are_no_negatives"],
        "columns are known by the last target",
    ),
    (
        "cir_cot/training/dataset.py",
        "        question = (record.reference, record.text)",
        "        question = (record.reference, record.id)",
        ["tests/training/test_trainer.py::test_queries_that_ask_the_same_share_their_targets"],
        "targets of the same question are negatives of each other",
    ),
    (
        "cir_cot/models/chat.py",
        "if text.count(_STAND_IN) != 1:",
        "if False:",
        [
            "tests/models/test_chat.py::test_a_template_that_does_not_show_the_text_exactly_once_is_refused"
        ],
        "a template without the text is taken",
    ),
    (
        "cir_cot/models/chat.py",
        "if self.opening.count(self.image_token) != 1 or self.image_token in self.closing:",
        "if self.image_token in self.closing:",
        [
            "tests/models/test_chat.py::test_a_template_that_does_not_place_one_picture_before_the_text_is_refused"
        ],
        "a template without a picture is taken",
    ),
    (
        "cir_cot/models/chat.py",
        " or self.image_token in self.closing:",
        ":",
        [
            "tests/models/test_chat.py::test_a_template_that_does_not_place_one_picture_before_the_text_is_refused"
        ],
        "a picture after the text is taken",
    ),
    # ---- cir_cot/training/config.py
    (
        "cir_cot/training/config.py",
        "        if isinstance(event, yaml.AliasEvent):",
        "        if False:",
        [
            "tests/training/test_arguments.py::test_a_hostile_file_is_one_short_line[alias of a scalar]"
        ],
        "aliases unfold",
    ),
    (
        "cir_cot/training/config.py",
        '        if getattr(event, "tag", None) is not None:',
        "        if False:",
        ["tests/training/test_arguments.py::test_a_hostile_file_is_one_short_line[tagged bool]"],
        "a tag is a traceback",
    ),
    (
        "cir_cot/training/config.py",
        "            if key.value in seen:",
        "            if False:",
        ["tests/training/test_arguments.py::test_a_hostile_file_is_one_short_line[duplicate key]"],
        "the second of two equal keys wins in silence",
    ),
    (
        "cir_cot/training/config.py",
        '_PLAIN = {"tag:yaml.org,2002:timestamp", ',
        "_PLAIN = {",
        ["tests/training/test_arguments.py::test_an_unusual_file_is_read_rightly[date as name]"],
        "a run named by a date is refused",
    ),
    (
        "cir_cot/training/config.py",
        "    if len(raw) > MAX_BYTES:",
        "    if False:",
        ["tests/training/test_arguments.py::test_a_hostile_file_is_one_short_line[70,000 bytes]"],
        "a file of any size is parsed",
    ),
    (
        "cir_cot/training/config.py",
        "    except RecursionError as error:",
        "    except ZeroDivisionError as error:",
        ["tests/training/test_arguments.py::test_a_hostile_file_is_one_short_line[deep list]"],
        "deep nesting is a traceback",
    ),
    (
        "cir_cot/training/config.py",
        "    if isinstance(value, int) and abs(value) > LARGEST:",
        "    if False:",
        [
            "tests/training/test_arguments.py::test_a_hostile_file_is_one_short_line[a number beyond floats]"
        ],
        "a huge number is a traceback",
    ),
    (
        "cir_cot/training/config.py",
        "return text if len(text) <= 200 else",
        "return text if True else",
        [
            "tests/training/test_arguments.py::test_a_hostile_file_is_one_short_line[value of 50,000 letters]"
        ],
        "an error of 50,000 letters",
    ),
    # ---- cir_cot/data/scene_files.py
    (
        "cir_cot/data/scene_files.py",
        "make_split(seed, split, counts[split], edits_of[split])",
        "make_split(seed, split, counts[split], edits)",
        [
            "tests/data/test_scenes.py::test_training_scenes_may_have_other_numbers_of_edits_than_test_scenes"
        ],
        "training scenes get as many edits as test scenes",
    ),
    # ---- cir_cot/data/scene_chains.py
    (
        "cir_cot/data/scene_chains.py",
        '    if conclusion in ("", chain.conclusion):\n        return None\n',
        "",
        ["tests/data/test_scene_chains.py"],
        "a planted word that changes nothing counts",
    ),
    # ---- cir_cot/evaluation/corrections.py
    (
        "cir_cot/evaluation/corrections.py",
        " - {record.reference}",
        "",
        ["tests/evaluation/test_corrections.py"],
        "a query's own picture, which no ranking holds, counts as one that could be found",
    ),
    (
        "cir_cot/heads/decoding.py",
        "places = torch.arange(longest, device=device) - (longest - lengths)[:, None]  # (A, S)",
        "places = torch.arange(longest, device=device) + 0 * lengths[:, None]  # (A, S)",
        [
            "tests/heads/test_decoding.py::test_prescribed_tokens_are_fed_together_and_nothing_changes"
        ],
        "rows with fewer new tokens see their padding",
    ),
    (
        "cir_cot/heads/decoding.py",
        "previous = torch.where((lengths > 1)[:, None], hidden[:, -2], previous)",
        "previous = hidden[:, -2]",
        [
            "tests/heads/test_decoding.py::test_prescribed_tokens_are_fed_together_and_nothing_changes"
        ],
        "a row with one new token is read at its padding",
    ),
    (
        "cir_cot/heads/decoding.py",
        "mine = functional.pad(self.mask, (left[0], 0))",
        "mine = functional.pad(self.mask, (left[0], 0), value=1)",
        ["tests/heads/test_decoding.py::test_a_longer_prompt_joins_a_shorter_one"],
        "rows that wait for longer ones see the padding of their cache",
    ),
    (
        "cir_cot/heads/decoding.py",
        "return free if free >= FREE * places and can_join(active.cache) else 0",
        "return 0",
        ["tests/heads/test_decoding.py::test_rows_join_a_running_batch_and_nothing_changes"],
        "no row joins a running batch",
    ),
    (
        "cir_cot/heads/grammar.py",
        'return list(self.endings[state.section].get(">" + left, ()))',
        "return []",
        ["tests/heads/test_decoding.py::test_a_tag_that_is_begun_is_written_to_its_end"],
        "closing tags are chosen token by token",
    ),
    (
        "cir_cot/heads/grammar.py",
        "return bool(row.forced) or row.state.section == len(self.parts)",
        "return bool(row.forced)",
        ["tests/heads/test_decoding.py::test_a_tag_that_is_begun_is_written_to_its_end"],
        "the retrieval token takes a step of its own",
    ),
    (
        "cir_cot/heads/grammar.py",
        "            row.forced = []  # the tokens that are given need not be those that the form prescribes\n",
        "",
        ["tests/contract/test_retriever_contract.py::test_a_begun_chain_is_kept_and_written_on"],
        "a begun chain clashes with what the form would have written",
    ),
    (
        "cir_cot/heads/sampling.py",
        "order = (likely.values / self.temperature + noise).topk(count).indices",
        "order = (likely.values + noise).topk(count).indices",
        ["tests/heads/test_sampling.py::test_tokens_come_as_often_as_the_softmax_says"],
        "the temperature is not used",
    ),
    (
        "cir_cot/heads/sampling.py",
        "_mixed(self.seeds[number]) ^ place",
        "_mixed(self.seeds[number])",
        ["tests/heads/test_sampling.py::test_noise_is_even_and_depends_on_row_place_and_token"],
        "every place of a chain has the same noise",
    ),
    (
        "cir_cot/heads/sampling.py",
        "_shifted(hashes, 12).double() + 0.5) * 2.0**-52",
        "_shifted(hashes, 11).double() + 0.5) * 2.0**-53",
        ["tests/heads/test_sampling.py::test_noise_is_even_and_depends_on_row_place_and_token"],
        "noise can be infinite",
    ),
    (
        "cir_cot/evaluation/mining.py",
        "seen = {digests[name] for name in excluded}",
        "seen: set[str] = set()",
        ["tests/evaluation/test_mining.py::test_a_planted_false_negative_never_appears"],
        "the target under another id is a negative",
    ),
    (
        "cir_cot/evaluation/mining.py",
        "score > limit and name not in record.subset",
        "score > limit",
        [
            "tests/evaluation/test_mining.py::test_what_scores_far_above_the_target_is_probably_right"
        ],
        "CIRR's known negatives are left out by the margin",
    ),
    (
        "cir_cot/evaluation/mining.py",
        "max(known) + margin",
        "min(known) + margin",
        [
            "tests/evaluation/test_mining.py::test_what_scores_far_above_the_target_is_probably_right"
        ],
        "the margin is measured from the worst right answer",
    ),
    (
        "cir_cot/training/chunks.py",
        "shown = (rows[:, None] * pictures + torch.arange(pictures)).flatten()",
        "shown = (rows[:, None] + len(rows) * torch.arange(pictures)).flatten()",
        ["tests/training/test_negatives.py"],
        "a chunk has other rows' pictures",
    ),
    (
        "cir_cot/training/step_losses.py",
        "all_ids = torch.cat([all_ids, gather_with_grad(outputs.negative_ids, counts).flatten()])",
        "all_ids = torch.cat([all_ids, 0 * gather_with_grad(outputs.negative_ids, counts).flatten()])",
        ["tests/training/test_negatives.py::test_negatives_are_further_columns_of_infonce"],
        "another query's negative that is correct for this one counts against it",
    ),
    (
        "cir_cot/training/negatives.py",
        "for name in mined[record.id] if name not in known]",
        "for name in mined[record.id] if name != record.reference]",
        ["tests/training/test_negatives.py::test_a_file_cannot_make_a_right_answer_a_negative"],
        "a file can make the target a negative",
    ),
    (
        "cir_cot/stored_help.py",
        'spelled = "--" + name[2:].replace("-", "_") if recipe and name not in known else name',
        "spelled = name",
        ["tests/test_stored_help.py::test_an_unknown_option_is_named_with_the_nearest"],
        "a recipe's options with hyphens are unknown",
    ),
    (
        "cir_cot/stored_help.py",
        'stored["sft"] if command == "plan" else []',
        "[]",
        ["tests/test_stored_help.py::test_an_unknown_option_is_named_with_the_nearest"],
        "a plan refuses a mistyped argument of sft without the nearest",
    ),
    (
        "cir_cot/stored_help.py",
        "if recipe and _trainer_has(spelled[2:]):",
        "if False:",
        [
            "tests/test_stored_help.py::test_a_field_that_only_the_installed_transformers_has_is_left_to_the_parser"
        ],
        "an argument of a newer transformers is refused",
    ),
    (
        "cir_cot/installation.py",
        "if asked.specifier.contains(found, prereleases=True):",
        "if True:",
        ["tests/test_installation.py::test_wrong_and_missing_packages_are_named_with_the_cure"],
        "a wrong version is no problem",
    ),
    (
        "cir_cot/review/queue.py",
        "                cot_to_text(kept)  # refuses tags\n",
        "",
        ["tests/review/test_queue.py::test_what_cannot_be_decided_is_named_and_nothing_is_written"],
        "an edited chain may hold tags",
    ),
    (
        "cir_cot/review/queue.py",
        "kept = kept or source.cot",
        "kept = source.cot",
        ["tests/review/test_queue.py::test_decisions_are_what_training_reads"],
        "an edit is lost",
    ),
    (
        "cir_cot/review/queue.py",
        "last = min(last, number + SCANNED)",
        "pass",
        ["tests/review/test_queue.py::test_a_request_for_flagged_rows_looks_at_so_many_at_most"],
        "a request filters a whole dataset",
    ),
    (
        "cir_cot/review/queue.py",
        "return decision.decision, decision.choice",
        "return decision.decision, decision.decision",
        ["tests/review/test_queue.py::test_reviewers_who_keep_other_chains_do_not_agree"],
        "keeping A agrees with keeping B",
    ),
    (
        "cir_cot/review/queue.py",
        "decision = self.by_reviewer.get(number, {}).get(self.reviewer)",
        "pass",
        ["tests/review/test_queue.py::test_an_independent_judgement_sees_no_other"],
        "an independent judgement sees the others'",
    ),
    (
        "cir_cot/review/queue.py",
        "return self.reviewer not in self.by_reviewer.get(number, {})",
        "return number not in self.by_reviewer",
        ["tests/review/test_queue.py::test_an_independent_judgement_sees_no_other"],
        "rows that another decided are not judged independently",
    ),
    (
        "cir_cot/review/queue.py",
        "if number is None and not first:",
        "if False:",
        ["tests/review/test_queue.py::test_a_review_that_began_later_may_hold_more_rows"],
        "a review stops where another one holds more rows",
    ),
    (
        "cir_cot/review/queue.py",
        '(record.teacher or {}).get("seen_target") is True',
        "bool(record.teacher)",
        ["tests/review/test_queue.py::test_rows_have_a_chain_or_a_reason"],
        "every teacher is said to have seen the target",
    ),
    (
        "cir_cot/chains/job_options.py",
        "            check_own_output(self.out, asked)\n",
        "",
        [
            "tests/chains/test_annotate.py::"
            "test_rows_asked_again_do_not_go_into_the_file_that_holds_their_chains"
        ],
        "rows asked again count as done",
    ),
    (
        "cir_cot/review/agreement.py",
        "return 1 - (count - 1) * differing / chance",
        "return 1 - count * differing / chance",
        ["tests/review/test_agreement.py::test_krippendorffs_own_example"],
        "alpha without its correction for few values",
    ),
    (
        "cir_cot/review/app.py",
        "if len(body) > MAX_BODY:",
        "if False:",
        ["tests/review/test_app.py::test_long_bodies_other_sites_and_other_hosts_are_refused"],
        "a request of any length is held in memory",
    ),
    (
        "cir_cot/evaluation/counterfactuals.py",
        "place = 1 + int((scores[others] >= best).sum())",
        "place = 1 + int((scores[others] > best).sum())",
        ["tests/evaluation/test_counterfactuals.py::test_ties_count_against_the_target"],
        "ties count for the target",
    ),
    (
        "cir_cot/evaluation/counterfactuals.py",
        "word = rng.choice([one for one in kind if one != found.group().lower()])",
        "word = rng.choice([one for one in kind if one != found.group()])",
        [
            "tests/evaluation/test_counterfactuals.py::test_one_attribute_is_swapped_for_one_of_its_kind"
        ],
        "Red is swapped for red",
    ),
    (
        "cir_cot/evaluation/counterfactuals.py",
        "composed = [whole and not part for",
        "composed = [whole for",
        ["tests/evaluation/test_counterfactuals.py::test_the_composition_gap"],
        "queries that a picture alone solves count as composed",
    ),
    (
        "cir_cot/evaluation/counterfactuals.py",
        "if len(pairs) < 2:",
        "if len(pairs) < 1:",
        ["tests/evaluation/test_counterfactuals.py::test_edits_need_two_valid_chains"],
        "a query borrows from itself",
    ),
    (
        "cir_cot/evaluation/arrivals.py",
        "return bool(added @ vector > scores.max())",
        "return bool(added @ vector >= scores.max())",
        [
            "tests/evaluation/test_counterfactuals.py::test_a_picture_of_the_swapped_attribute_is_found_by_what_follows_its_conclusion"
        ],
        "a tie with the gallery counts as arrived",
    ),
    (
        "cir_cot/evaluation/arrivals.py",
        "zip(rows, own, added, strict=True)",
        "zip(rows, vectors, added, strict=True)",
        [
            "tests/evaluation/test_counterfactuals.py::test_a_picture_of_the_swapped_attribute_is_found_by_what_follows_its_conclusion"
        ],
        "the control reads the edited chain",
    ),
    (
        "cir_cot/data/scenes.py",
        "if found is None or slots[SLOTS.index(found[1])]:",
        "if found is None:",
        ["tests/evaluation/test_counterfactuals.py::test_a_scene_is_read_back_from_its_text"],
        "a second object in one place hides the first",
    ),
    (
        "cir_cot/evaluation/intervals.py",
        "return min(1.0, 2 * tail)",
        "return min(1.0, tail)",
        ["tests/evaluation/test_counterfactuals.py::test_intervals_and_the_sign_test"],
        "a one-sided test is told as two-sided",
    ),
    (
        "cir_cot/heads/attribution.py",
        "before[start:] = False",
        "pass",
        ["tests/heads/test_attribution.py"],
        "the chain's tokens count as text, too",
    ),
    (
        "cir_cot/evaluation/uncertainty.py",
        "wins = sum(b and not a for",
        "wins = sum(bool(b) for",
        ["tests/evaluation/test_uncertainty.py::test_readings_are_compared_on_the_same_queries"],
        "what both find is a win",
    ),
    (
        "cir_cot/evaluation/uncertainty.py",
        "if oracle.metrics[metric] < full.metrics[metric]:",
        "if False:",
        ["tests/evaluation/test_uncertainty.py::test_an_oracle_below_full_is_doubted"],
        "chains of another form are not noticed",
    ),
    (
        "cir_cot/evaluation/tables.py",
        "0 < size <= int(depth)",
        "False",
        ["tests/evaluation/test_uncertainty.py::test_recall_at_as_many_as_there_are_is_not_told"],
        "R@50 of a gallery of 22 is told",
    ),
    (
        "cir_cot/training/memory.py",
        "return round(rows * row * (4 / 3 if cached else 1))",
        "return round(rows * row)",
        ["tests/training/test_memory.py::test_a_step_is_told_in_operations"],
        "the first pass of a cached step is forgotten",
    ),
    (
        "cir_cot/search/api.py",
        'if request.headers.get("content-type", "").partition(";")[0] != "application/json":',
        "if False:",
        ["tests/search/test_api.py::test_bad_requests_are_refused"],
        "a form of another site's page is answered",
    ),
    (
        "cir_cot/search/api.py",
        "not 1 <= len(queries) <= MAX_BATCH",
        "not queries",
        ["tests/search/test_api.py::test_bad_requests_are_refused"],
        "a batch of any length is answered",
    ),
    (
        "cir_cot/evaluation/look_again.py",
        "        intervals=recall_intervals(result.benchmark, rankings, metrics),\n",
        "",
        [
            "tests/evaluation/test_look_again.py::test_a_judge_that_knows_finds_every_target_among_the_first_k"
        ],
        "a reranked result has the intervals of the first stage",
    ),
    (
        "cir_cot/heads/grammar.py",
        "        if row.used >= self.budgets[state.section]:\n            return []\n",
        "",
        [
            "tests/heads/test_decoding.py::test_a_part_is_cut_behind_its_last_token_and_not_flagged_when_it_ends_there"
        ],
        "a section that is cut within its tag is not flagged",
    ),
    (
        "cir_cot/heads/qwen.py",
        '        torch._assert_async(single, "every row holds exactly one retrieval token")\n',
        "",
        ["tests/heads/test_base.py::test_a_row_without_its_retrieval_token_is_refused"],
        "a row without a retrieval token is read at its first token",
    ),
    (
        "cir_cot/search/api.py",
        'return query["k"], query["reading"], query["where"], query["chain"] is None',
        'return query["k"], query["reading"], query["where"]',
        ["tests/search/test_api.py::test_answers_are_those_of_the_search"],
        "a query without a chain is asked with none of its neighbour's",
    ),
    (
        "cir_cot/training/memory.py",
        "        loss.backward()\n",
        "        torch.autograd.grad(loss, trained, allow_unused=True)\n",
        ["tests/training/test_memory.py::test_the_estimate_is_the_peak_of_the_step"],
        "the recomputation of a step is counted in part",
    ),
    (
        "cir_cot/heads/samples.py",
        "agreement = mean.norm(dim=-1).tolist()",
        "agreement = functional.normalize(mean, dim=-1).norm(dim=-1).tolist()",
        [
            "tests/heads/test_samples.py::test_the_vector_is_the_mean_of_the_likeliest_and_the_drawn_chains"
        ],
        "chains always agree",
    ),
    (
        "cir_cot/heads/samples.py",
        'f"{image.size} {number} {self.seed}"',
        'f"{image.size} {self.seed}"',
        ["tests/heads/test_samples.py::test_draws_depend_on_query_number_and_seed_alone"],
        "all drawn chains of a query are the same",
    ),
    (
        "cir_cot/evaluation/encode.py",
        "    retriever.batch_size = batch_size\n",
        "",
        [
            "tests/evaluation/test_evaluate.py::test_a_head_is_given_several_batches_of_queries_at_a_time"
        ],
        "a batch is larger than asked for",
    ),
    # ---- cir_cot/heads/decoding.py
    (
        "cir_cot/heads/grammar.py",
        "not text[: tag.start()].strip(WHITESPACE)",
        "not text[: tag.start()]",
        ["tests/heads/test_decoding.py::test_what_is_no_beginning_of_a_chain_is_refused"],
        "a part of white space alone",
    ),
    (
        "cir_cot/heads/grammar.py",
        "return None if rest else ChainState(section)",
        "return ChainState(section)",
        ["tests/heads/test_decoding.py::test_what_is_no_beginning_of_a_chain_is_refused"],
        "words behind the last part",
    ),
    (
        "cir_cot/heads/grammar.py",
        "max(1, round(SHARES[part] * max_new_tokens))",
        "round(SHARES[part] * max_new_tokens)",
        [
            "tests/heads/test_decoding.py::test_a_part_is_cut_behind_its_last_token_and_not_flagged_when_it_ends_there",
            "tests/heads/test_decoding.py::test_a_second_choice_is_taken_and_flagged",
            "tests/heads/test_decoding.py::test_neither_special_tokens_nor_spare_rows_can_be_written",
            "tests/heads/test_decoding.py::test_a_model_that_wants_to_stop_at_once_or_never_is_kept_in_form_and_flagged",
        ],
        "a part may have a budget of 0",
    ),
    (
        "cir_cot/heads/grammar.py",
        "row.used >= budget",
        "row.used > budget",
        [
            "tests/heads/test_decoding.py::test_a_part_is_cut_behind_its_last_token_and_not_flagged_when_it_ends_there",
            "tests/heads/test_decoding.py::test_a_second_choice_is_taken_and_flagged",
            "tests/heads/test_decoding.py::test_neither_special_tokens_nor_spare_rows_can_be_written",
            "tests/heads/test_decoding.py::test_a_model_that_wants_to_stop_at_once_or_never_is_kept_in_form_and_flagged",
        ],
        "a part has a token too many",
    ),
    (
        "cir_cot/heads/grammar.py",
        "forced_form(section) if rank else",
        "forced_form(section) if rank > 1 else",
        [
            "tests/heads/test_decoding.py::test_a_part_is_cut_behind_its_last_token_and_not_flagged_when_it_ends_there",
            "tests/heads/test_decoding.py::test_a_second_choice_is_taken_and_flagged",
            "tests/heads/test_decoding.py::test_neither_special_tokens_nor_spare_rows_can_be_written",
            "tests/heads/test_decoding.py::test_a_model_that_wants_to_stop_at_once_or_never_is_kept_in_form_and_flagged",
        ],
        "a second choice is not flagged",
    ),
    (
        "cir_cot/heads/grammar.py",
        'close if text else "-" + close',
        "close",
        [
            "tests/heads/test_decoding.py::test_a_part_is_cut_behind_its_last_token_and_not_flagged_when_it_ends_there",
            "tests/heads/test_decoding.py::test_a_second_choice_is_taken_and_flagged",
            "tests/heads/test_decoding.py::test_neither_special_tokens_nor_spare_rows_can_be_written",
            "tests/heads/test_decoding.py::test_a_model_that_wants_to_stop_at_once_or_never_is_kept_in_form_and_flagged",
        ],
        "an empty part is closed",
    ),
    (
        "cir_cot/heads/decoding.py",
        "CANDIDATES = 8",
        "CANDIDATES = 1",
        [
            "tests/heads/test_decoding.py::test_where_the_likeliest_token_does_not_fit_the_next_one_is_written"
        ],
        "only the likeliest token is looked at",
    ),
    (
        "cir_cot/heads/decoding.py",
        "banned[len(tokenizer) :] = True",
        "pass",
        [
            "tests/heads/test_decoding.py::test_a_part_is_cut_behind_its_last_token_and_not_flagged_when_it_ends_there",
            "tests/heads/test_decoding.py::test_a_second_choice_is_taken_and_flagged",
            "tests/heads/test_decoding.py::test_neither_special_tokens_nor_spare_rows_can_be_written",
            "tests/heads/test_decoding.py::test_a_model_that_wants_to_stop_at_once_or_never_is_kept_in_form_and_flagged",
        ],
        "spare rows of the vocabulary are written",
    ),
    (
        "cir_cot/heads/decoding.py",
        "banned[list(tokenizer.all_special_ids)] = True",
        "pass",
        [
            "tests/heads/test_decoding.py::test_a_part_is_cut_behind_its_last_token_and_not_flagged_when_it_ends_there",
            "tests/heads/test_decoding.py::test_a_second_choice_is_taken_and_flagged",
            "tests/heads/test_decoding.py::test_neither_special_tokens_nor_spare_rows_can_be_written",
            "tests/heads/test_decoding.py::test_a_model_that_wants_to_stop_at_once_or_never_is_kept_in_form_and_flagged",
        ],
        "special tokens are written",
    ),
    (
        "cir_cot/heads/decoding.py",
        "states[ended, 0 if before_ret else 1]",
        "states[ended, 1]",
        [
            "tests/heads/test_decoding.py::test_vectors_are_those_of_reading_the_written_tokens_in_any_batch_and_order"
        ],
        "the readout before the token is that at the token",
    ),
    (
        "cir_cot/heads/decoding.py",
        "active.positions = active.positions + lengths[:, None]",
        "active.positions = active.positions + longest",
        [
            "tests/heads/test_decoding.py::test_prescribed_tokens_are_fed_together_and_nothing_changes"
        ],
        "a row's position counts the padding of a step",
    ),
    (
        "cir_cot/heads/grammar.py",
        "state.section == row.state.section and not row.state.pending_tag",
        "state.section == row.state.section",
        [
            "tests/heads/test_decoding.py::test_a_part_is_cut_behind_its_last_token_and_not_flagged_when_it_ends_there",
            "tests/heads/test_decoding.py::test_a_second_choice_is_taken_and_flagged",
            "tests/heads/test_decoding.py::test_neither_special_tokens_nor_spare_rows_can_be_written",
            "tests/heads/test_decoding.py::test_a_model_that_wants_to_stop_at_once_or_never_is_kept_in_form_and_flagged",
        ],
        "a tag's tokens count against the part's budget",
    ),
    # ---- cir_cot/profiling/device_meter.py
    (
        "cir_cot/profiling/device_meter.py",
        'in ("kernel", "cpu_op", "gpu_memcpy", "gpu_memset")',
        'in ("kernel", "cpu_op", "gpu_memset")',
        ["tests/profiling/test_fullsize.py::test_kernels_are_summed_by_kind_and_name"],
        "copies are left out of the kernels",
    ),
    # ---- cir_cot/devices.py
    (
        "cir_cot/devices.py",
        "(device.index or 0) < torch.cuda.device_count()",
        "True",
        ["tests/test_devices.py::test_a_device_that_is_not_there_is_one_line"],
        "cuda without a GPU is a traceback",
    ),
    # ---- cir_cot/search/dialogue.py
    (
        "cir_cot/search/dialogue.py",
        "        if name not in self.known:",
        "        if False:",
        ["tests/search/test_demo.py::test_only_pictures_of_the_gallery_can_be_had"],
        "any picture can be had",
    ),
    (
        "cir_cot/search/dialogue.py",
        "if len(data) > MAX_BYTES:",
        "if len(data) > 2 * MAX_BYTES:",
        ["tests/search/test_dialogue.py"],
        "uploads of 20 MB are decoded",
    ),
    (
        "cir_cot/search/dialogue.py",
        'return check_text(text, f"the {name}", longest)',
        'return check_text(text, f"the {name}", longest + 1)',
        ["tests/search/test_dialogue.py"],
        "a letter too many is read",
    ),
    (
        "cir_cot/search/dialogue.py",
        "turn][-TURNS:]",
        "turn]",
        ["tests/search/test_dialogue.py"],
        "turns are remembered without end",
    ),
    (
        "cir_cot/search/dialogue.py",
        "copy.thumbnail((side, side))",
        "pass",
        ["tests/search/test_dialogue.py"],
        "whole pictures are remembered",
    ),
    (
        "cir_cot/search/dialogue.py",
        'filter(None, [state["id"]])',
        "filter(None, [])",
        ["tests/search/test_reference.py"],
        "the reference is found",
    ),
    (
        "cir_cot/search/dialogue.py",
        "enumerate(answer.hits, 1)",
        "enumerate(answer.hits)",
        ["tests/search/test_dialogue.py"],
        "places start at 0",
    ),
    (
        "cir_cot/search/dialogue.py",
        "            if name in self.images:",
        "            if True:",
        ["tests/search/test_dialogue.py"],
        "hits without a picture end the page",
    ),
    (
        "cir_cot/search/answer.py",
        "for name, share in answer.routing.items() if share]",
        "for name, share in answer.routing.items()]",
        ["tests/search/test_dialogue.py"],
        "parts that took no share are named",
    ),
    (
        "cir_cot/search/dialogue.py",
        "{shown(name)} is not in the gallery",
        "{name!r} is not in the gallery",
        ["tests/search/test_demo.py::test_only_pictures_of_the_gallery_can_be_had"],
        "a long id floods the page",
    ),
    (
        "cir_cot/search/dialogue.py",
        "if sum(map(len, judged)) > JUDGED:",
        "if False:",
        ["tests/search/test_demo_events.py"],
        "any number of pictures is encoded for one click",
    ),
    (
        "cir_cot/search/dialogue.py",
        '*filter(None, [state["id"]]), *question.disliked]',
        '*filter(None, [state["id"]])]',
        ["tests/search/test_demo_events.py"],
        "what a visitor does not want is found again",
    ),
    (
        "cir_cot/search/dialogue.py",
        "if unknown := [name for name in names if name not in self.known]:",
        "if unknown := []:",
        ["tests/search/test_demo_events.py"],
        "an address reads any picture",
    ),
    (
        "cir_cot/search/demo_events.py",
        "        # A handler that yields nothing would empty the page.\n        yield self.screen()",
        "        ...",
        ["tests/search/test_demo_events.py"],
        "a page without a question is emptied",
    ),
    (
        "cir_cot/search/demo_events.py",
        "compared = replace(plain, where=question.where)",
        "compared = plain",
        ["tests/search/test_demo_events.py"],
        "the comparison ignores the filters",
    ),
    (
        "cir_cot/search/demo_events.py",
        "            found=gr.update(value=[], visible=False),\n",
        "",
        ["tests/search/test_demo_events.py"],
        "another reference shows the last one's pictures",
    ),
    (
        "cir_cot/search/feedback.py",
        "query - DISLIKED",
        "query + DISLIKED",
        ["tests/search/test_demo_events.py"],
        "what is not wanted is searched for",
    ),
    (
        "cir_cot/search/feedback.py",
        "+ LIKED * liked.float().mean(0)",
        "+ LIKED * liked.float().sum(0)",
        ["tests/search/test_demo_events.py"],
        "several liked pictures weigh more than the query",
    ),
    (
        "cir_cot/search/chain_difference.py",
        "<mark>{escape(inner)}</mark>",
        "<mark>{inner}</mark>",
        ["tests/search/test_demo_events.py"],
        "words of a chain are HTML",
    ),
    (
        "cir_cot/search/chain_difference.py",
        "[escape(text) or",
        "[str(text) or",
        ["tests/search/test_demo_events.py"],
        "a chain alone is HTML",
    ),
    (
        "cir_cot/search/question.py",
        "if len(query) > MAX_ADDRESS:",
        "if False:",
        ["tests/search/test_question.py"],
        "an address of any length is read",
    ),
    (
        "cir_cot/search/question.py",
        "other != name)\n        dislikes",
        "other)\n        dislikes",
        ["tests/search/test_question.py"],
        "a picture is liked and not",
    ),
    (
        "cir_cot/search/filter_columns.py",
        "len(different) <= MAX_VALUES",
        "True",
        ["tests/search/test_filter_columns.py"],
        "a control of a thousand names",
    ),
    (
        "cir_cot/search/filter_columns.py",
        "if value in chosen]\n            if wanted",
        "]\n            if wanted",
        ["tests/search/test_filter_columns.py"],
        "a filter of all values",
    ),
    # ---- cir_cot/search/vector_store.py
    (
        "cir_cot/fingerprint.py",
        "ALIKE = 0.999",
        "ALIKE = 0.5",
        [
            "tests/search/test_index_files.py::test_a_retriever_is_refused_from_a_cosine_of_0_999_downward"
        ],
        "another retriever is taken for the same",
    ),
    (
        "cir_cot/search/vector_store.py",
        "            file.flush()\n            os.fsync(file.fileno())",
        "            file.flush()",
        [
            "tests/search/test_faiss_index.py::test_a_batch_is_on_the_disk_before_the_next_one_starts"
        ],
        "a batch is not on the disk",
    ),
    (
        "cir_cot/search/vector_store.py",
        'content = row["hash"].tobytes() + row["vector"].tobytes()',
        'content = row["vector"].tobytes()',
        ["tests/search/test_faiss_index.py::test_a_row_with_a_flipped_bit_is_not_used_and_said"],
        "a flipped hash is not noticed",
    ),
    (
        "cir_cot/search/vector_store.py",
        'content = row["hash"].tobytes() + row["vector"].tobytes()',
        'content = row["hash"].tobytes()',
        ["tests/search/test_faiss_index.py::test_a_row_with_a_flipped_bit_is_not_used_and_said"],
        "a flipped vector is not noticed",
    ),
    (
        "cir_cot/search/vector_store.py",
        '            if _checksum(row) == row["checksum"].tobytes():',
        "            if True:",
        ["tests/search/test_faiss_index.py::test_a_row_with_a_flipped_bit_is_not_used_and_said"],
        "a damaged row is used",
    ),
    (
        "cir_cot/search/vector_store.py",
        "os.truncate(self.path, self.count * self.layout.itemsize)",
        "pass",
        ["tests/search/test_faiss_index.py::test_a_torn_end_is_cut_off_wherever_the_machine_died"],
        "a torn end shifts all later rows",
    ),
    (
        "cir_cot/search/gallery_scan.py",
        "        if hash_picture(images, name) != digest:",
        "        if False:",
        [
            "tests/search/test_faiss_index.py::test_a_picture_that_changes_while_it_is_read_is_left_out"
        ],
        "a vector of other content than its hash",
    ),
    (
        "cir_cot/search/vector_store.py",
        "            if OWN.fullmatch(path.name):\n                path.unlink()",
        "            path.unlink()",
        ["tests/search/test_index_files.py::test_a_file_that_somebody_put_beside_the_parts_stays"],
        "a user's file beside the parts is removed",
    ),
    (
        "cir_cot/search/vector_store.py",
        "elif folder.exists() and any(not OWN.fullmatch(file.name) for file in folder.iterdir()):",
        "elif False:",
        [
            "tests/search/test_index_files.py::test_a_folder_named_like_that_of_the_parts_is_refused_and_stays"
        ],
        "a user's folder is used for parts",
    ),
    (
        "cir_cot/search/vector_store.py",
        '    if not is_fingerprint(content.get("probe")) or not is_bounds(content.get("pixels")):',
        "    if content is None:",
        [
            "tests/search/test_index_files.py::test_a_damaged_fingerprint_of_an_interrupted_run_is_one_line"
        ],
        "a damaged fingerprint is a traceback",
    ),
    (
        "cir_cot/search/gallery_scan.py",
        "        if one.picture is not None and one.digest not in done:",
        "        if one.picture is not None:",
        ["tests/search/test_faiss_index.py::test_equal_files_are_encoded_once"],
        "equal files are encoded twice",
    ),
    (
        "cir_cot/search/gallery_scan.py",
        "    if batch:\n        yield batch\n",
        "",
        [
            "tests/search/test_faiss_index.py::test_any_number_of_processes_shares_the_work_and_may_change"
        ],
        "the last batch is not encoded",
    ),
    (
        "cir_cot/search/gallery_scan.py",
        "    share = ranks.share(names)",
        "    share = names[ranks.rank :]",
        [
            "tests/search/test_faiss_index.py::test_any_number_of_processes_shares_the_work_and_may_change"
        ],
        "processes do each other's work",
    ),
    (
        "cir_cot/search/vector_store.py",
        "        return kept  # as the retriever",
        "        return kept * np.float32(1.0000001)  # as the retriever",
        [
            "tests/search/test_faiss_index.py::test_shortened_vectors_are_unit_and_rank_by_their_first_numbers"
        ],
        "whole vectors are changed",
    ),
    # ---- cir_cot/evaluation/evaluate.py
    (
        "cir_cot/evaluation/evaluate.py",
        "if limit is None or limit >= len(benchmark.records):",
        "if limit is None or limit > len(benchmark.records):",
        ["tests/evaluation/test_evaluate.py::test_a_limit_samples_queries_and_keeps_the_gallery"],
        "the same",
        "a sample of all queries, sorted, is all queries",
    ),
    (
        "cir_cot/evaluation/evaluate.py",
        "kept = sorted(random.Random(seed).sample",
        "kept = list(random.Random(seed).sample",
        ["tests/evaluation/test_evaluate.py::test_a_limit_samples_queries_and_keeps_the_gallery"],
        "a sample is not in the official order",
    ),
    (
        "cir_cot/evaluation/evaluate.py",
        "random.Random(seed).sample",
        "random.Random(0).sample",
        ["tests/evaluation/test_evaluate.py::test_a_limit_samples_queries_and_keeps_the_gallery"],
        "every seed samples alike",
    ),
    (
        "cir_cot/evaluation/evaluate.py",
        "if len(groups) == 1:",
        "if len(groups) == 0:",
        ["tests/evaluation/test_evaluate.py::test_one_source_needs_no_table"],
        "a single source gets a table",
    ),
    (
        "cir_cot/retriever.py",
        "        module.training = False\n",
        "        pass\n",
        [
            "tests/evaluation/test_evaluate.py::test_a_model_in_training_is_measured_without_dropout_and_goes_on_training"
        ],
        "dropout stays on in evaluation",
    ),
    (
        "cir_cot/retriever.py",
        "            module.training = training\n",
        "            pass\n",
        [
            "tests/evaluation/test_evaluate.py::test_a_model_in_training_is_measured_without_dropout_and_goes_on_training"
        ],
        "a model in training does not go on training",
    ),
    (
        "cir_cot/evaluation/encode.py",
        "for name in dict.fromkeys(batch)}",
        "for name in batch}",
        [
            "tests/evaluation/test_evaluate.py::test_batches_keep_their_order_and_decode_a_repeated_name_once"
        ],
        "a repeated picture is decoded twice",
    ),
    (
        "cir_cot/evaluation/encode.py",
        "if embeddings.shape[0] != len(names):",
        "if False:",
        ["tests/evaluation/test_evaluate.py::test_an_embedding_too_few_is_our_own_defect"],
        "too few embeddings",
    ),
    (
        "cir_cot/evaluation/encode.py",
        "    if len(bad):\n",
        "    if False:\n",
        ["tests/evaluation/test_evaluate.py::test_an_embedding_that_is_not_finite_is_named"],
        "embeddings that are not finite are ranked",
    ),
    (
        "cir_cot/evaluation/encode.py",
        "output = encode(batch, pictures)",
        "output = encode(wanted[: len(pictures)], pictures)",
        [
            "tests/evaluation/test_evaluate.py::test_readings_of_the_toy_have_the_recall_they_must_have"
        ],
        "every batch asks the first queries",
    ),
    (
        "cir_cot/evaluation/evaluate.py",
        "    if missing:\n        count",
        "    if False:\n        count",
        [
            "tests/evaluation/test_evaluate.py::test_missing_pictures_are_counted_before_anything_is_encoded"
        ],
        "missing pictures are found out late",
    ),
    # ---- cir_cot/data/fashioniq.py
    (
        "cir_cot/data/fashioniq.py",
        "        if len(pair) != 2:",
        "        if len(pair) < 2:",
        ["tests/data/test_datasets.py::test_bad_annotations_are_named_with_their_place"],
        "a caption pair of three is a traceback",
    ),
    (
        "cir_cot/data/fashioniq.py",
        "{first.strip(STRIPPED).capitalize()} and",
        "{first.strip(STRIPPED)} and",
        ["tests/data/test_datasets.py::test_caption_joins_are_exact"],
        "CLIP4Cir's join is not capitalised",
    ),
    (
        "cir_cot/data/fashioniq.py",
        "MAX_COVR_WORDS = 30",
        "MAX_COVR_WORDS = 31",
        ["tests/data/test_datasets.py::test_covr_keeps_thirty_words"],
        "CoVR's join keeps 31 words",
    ),
    (
        "cir_cot/data/fashioniq.py",
        "alone[0] or alone[1],\n        alone[1] or alone[0]",
        "alone[0], alone[1]",
        ["tests/data/test_datasets.py::test_training_captions_are_a_quarter_each"],
        "a blank caption stands alone",
    ),
    (
        "cir_cot/data/fashioniq.py",
        "[int(draw * 4)]",
        "[round(draw * 3)]",
        ["tests/data/test_datasets.py::test_training_captions_are_a_quarter_each"],
        "the four texts are not drawn evenly",
    ),
    (
        "cir_cot/data/fashioniq.py",
        "    if not 0 <= draw < 1:",
        "    if not 0 <= draw <= 1:",
        ["tests/data/test_datasets.py::test_training_captions_are_a_quarter_each"],
        "a draw of 1 is an IndexError",
    ),
    (
        "cir_cot/data/fashioniq.py",
        "        used.add(record.reference)\n",
        "",
        ["tests/data/test_datasets.py::test_the_val_union_gallery_holds_references_and_targets"],
        "the val-union gallery lacks the references",
    ),
    (
        "cir_cot/data/fashioniq.py",
        "outside=frozenset(listed).difference(members)",
        "outside=frozenset()",
        ["tests/data/test_datasets.py::test_the_val_union_gallery_holds_references_and_targets"],
        "images outside the smaller gallery may not be named",
    ),
    (
        "cir_cot/data/fashioniq.py",
        'f"{index}.{number}" if join in SEVERAL_QUERIES else str(index)',
        "str(index)",
        ["tests/data/test_datasets.py::test_a_pair_that_makes_two_queries_has_two_ids"],
        "two queries of a caption pair share an id",
    ),
    # ---- cir_cot/models/feature_cache.py
    (
        "cir_cot/models/feature_cache.py",
        'digest_bytes(b"text " + text.encode())',
        "digest_bytes(text.encode())",
        ["tests/models/test_feature_cache.py"],
        "a text and a file of the same bytes share an entry",
    ),
    (
        "cir_cot/models/feature_cache.py",
        '.get("digest") == _digest(digests, vectors)',
        '.get("digest") is not None',
        [
            "tests/models/test_feature_cache.py::test_a_truncated_file_is_deleted_with_a_warning_and_rebuilt"
        ],
        "altered vectors are used",
    ),
    (
        "cir_cot/models/feature_cache.py",
        "self.folder = Path(folder) / identity",
        "self.folder = Path(folder)",
        ["tests/models/test_feature_cache.py::test_another_model_or_preprocessing_finds_nothing"],
        "another model's vectors are used",
    ),
    (
        "cir_cot/models/feature_cache.py",
        "index_of.items() if key not in self]",
        "index_of.items()]",
        ["tests/models/test_feature_cache.py"],
        "the cache is never asked",
    ),
    (
        "cir_cot/models/feature_cache.py",
        "        with locked(self.folder) if ranks.first else nullcontext():",
        "        with nullcontext():",
        [
            "tests/models/test_feature_cache.py::test_a_cache_that_another_process_fills_is_refused_but_what_is_there_is_read"
        ],
        "two processes fill one cache",
    ),
    (
        "cir_cot/models/feature_cache.py",
        "            self._read_new()\n            missing = self._missing(keys)",
        "            missing = self._missing(keys)",
        [
            "tests/models/test_feature_cache.py::test_what_another_process_has_written_since_the_cache_was_opened_is_not_computed_again"
        ],
        "what another process wrote is computed again",
    ),
    (
        "cir_cot/models/feature_cache.py",
        "ranks.share(missing), keys",
        "missing, keys",
        [
            "tests/models/test_feature_cache.py::test_processes_share_the_work_and_all_find_everything"
        ],
        "every process computes everything",
    ),
    (
        "cir_cot/search/index_files.py",
        '    "pixels": is_bounds,',
        '    "pixels": lambda value: True,',
        ["tests/search/test_index_files.py::test_damage_is_one_line_that_names_the_place"],
        "damaged pixel bounds of an index",
    ),
    (
        "cir_cot/fingerprint.py",
        "    if held and bounds and bounds() != held:",
        "    if False:",
        ["tests/search/test_faiss_index.py::test_a_retriever_at_other_pixel_bounds_is_refused"],
        "an index at other pixel bounds is taken",
    ),
    (
        "cir_cot/models/feature_cache.py",
        "if NAME.fullmatch(path.name) and path.name not in self.files:",
        "if path.name not in self.files:",
        [
            "tests/models/test_feature_cache.py::test_a_file_that_is_not_the_caches_is_neither_read_nor_deleted"
        ],
        "a user's file is deleted",
    ),
    (
        "cir_cot/models/feature_cache.py",
        "        if not vectors.isfinite().all():",
        "        if False:",
        ["tests/models/test_feature_cache.py::test_a_number_that_is_not_finite_is_not_kept"],
        "NaN is cached for ever",
    ),
    (
        "cir_cot/models/feature_cache.py",
        "        if intact and _shaped(digests, vectors):",
        "        if intact:",
        ["tests/models/test_feature_cache.py::test_a_file_of_other_shapes_is_computed_again"],
        "a file of other shapes is used",
    ),
    # ---- cir_cot/files.py
    (
        "cir_cot/files.py",
        "            os.replace(temporary, target)\n",
        "            target.write_bytes(temporary.read_bytes())\n            temporary.unlink()\n",
        [
            "tests/test_files.py::test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end"
        ],
        "the file is written in place, not renamed",
    ),
    (
        "cir_cot/files.py",
        "            temporary.unlink(missing_ok=True)\n            raise",
        "            raise",
        ["tests/test_files.py::test_any_failure_leaves_the_old_file_and_nothing_else"],
        "a failed write's temporary stays",
    ),
    (
        "cir_cot/files.py",
        "            sync(temporary)\n            os.replace(temporary, target)\n",
        "            os.replace(temporary, target)\n            sync(target)\n",
        [
            "tests/test_files.py::test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end"
        ],
        "the name is there before the content",
    ),
    (
        "cir_cot/files.py",
        "            sync(temporary)\n",
        "",
        [
            "tests/test_files.py::test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end"
        ],
        "the content is not synced",
    ),
    (
        "cir_cot/files.py",
        "        sync(target.parent)\n",
        "",
        [
            "tests/test_files.py::test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end"
        ],
        "the folder is not synced",
    ),
    (
        "cir_cot/files.py",
        "stat.S_IMODE(os.stat(target).st_mode)",
        "0o644",
        ["tests/test_files.py::test_a_file_that_is_there_keeps_its_mode"],
        "every file gets 0644",
    ),
    (
        "cir_cot/files.py",
        "os.O_WRONLY, 0o666)",
        "os.O_WRONLY, 0o644)",
        ["tests/test_files.py::test_a_new_file_has_the_mode_of_the_owners_umask"],
        "the umask's group write is lost",
    ),
    (
        "cir_cot/files.py",
        "target = Path(os.path.realpath(path))",
        "target = path",
        ["tests/test_files.py::test_a_link_stays_and_its_target_is_written"],
        "the link is replaced by a file",
    ),
    (
        "cir_cot/files.py",
        "error.errno not in (errno.EINVAL, errno.ENOTSUP) or",
        "",
        [
            "tests/test_files.py::test_any_failure_leaves_the_old_file_and_nothing_else",
            "tests/test_files.py::test_a_file_system_that_cannot_sync_folders_is_written_to",
        ],
        "a folder's failed sync is passed over whatever the error",
        "outside of EINVAL and ENOTSUP no file system refuses to sync a folder alone; a file's failure is still raised",
    ),
    (
        "cir_cot/files.py",
        "max(ALWAYS, MAX_RATIO * os.stat(path).st_size)",
        "2**40",
        ["tests/test_files.py::test_a_small_archive_unpacks_to_a_bounded_size"],
        "a small archive fills the memory",
    ),
    (
        "cir_cot/files.py",
        "max(ALWAYS, MAX_RATIO * os.stat(path).st_size)",
        "MAX_RATIO * os.stat(path).st_size",
        ["tests/test_files.py::test_regular_but_short_archives_are_read"],
        "regular rankings are refused",
    ),
    (
        "cir_cot/files.py",
        "    if len(raw) > MAX_BYTES:",
        "    if len(raw) >= MAX_BYTES:",
        ["tests/test_files.py::test_the_exact_number_of_bytes_is_allowed"],
        "exactly as many bytes as allowed are refused",
    ),
    (
        "cir_cot/files.py",
        "file.read(allowed + 1)",
        "file.read(allowed)",
        ["tests/test_files.py::test_the_exact_number_of_bytes_is_allowed"],
        "a file is cut in silence",
    ),
    (
        "cir_cot/files.py",
        '(b",", b":", b"[", b"{", b"\\n")',
        '(b",",)',
        ["tests/test_files.py::test_the_number_of_values_is_bounded"],
        "only commas count as values",
    ),
    (
        "cir_cot/files.py",
        "for _ in range(MAX_DEPTH):",
        "for _ in range(MAX_DEPTH + 1):",
        ["tests/test_files.py::test_the_exact_depth_is_allowed"],
        "one more level is allowed",
    ),
    (
        "cir_cot/files.py",
        "        if len(digits) > MAX_DIGITS:",
        "        if False:",
        ["tests/test_files.py::test_whole_numbers_up_to_64_bits_are_read_and_no_larger_ones"],
        "numbers of 4,000 digits are read",
    ),
    (
        "cir_cot/files.py",
        "        if math.isinf(value):",
        "        if False:",
        ["tests/test_records.py::test_the_first_bad_line_is_named"],
        "1e999 is read as infinity",
    ),
    (
        "cir_cot/files.py",
        "        if not isinstance(raw, bytes) or SPLIT.search(raw):",
        "        if False:",
        ["tests/test_files.py::test_escaped_pairs_of_surrogates_are_text"],
        "half surrogate pairs are read",
    ),
    (
        "cir_cot/files.py",
        "[89a-fA-F]",
        "[89abAB]",
        ["tests/test_files.py::test_escaped_pairs_of_surrogates_are_text"],
        "the second halves of surrogate pairs are read",
    ),
    (
        "cir_cot/files.py",
        "        if len(obj) != len(pairs):",
        "        if False:",
        ["tests/test_records.py::test_the_first_bad_line_is_named"],
        "of a key that occurs twice the last value counts",
    ),
    (
        "cir_cot/files.py",
        "        if item in seen:",
        "        if item not in seen:",
        ["tests/test_files.py::test_a_repeated_key_is_found_in_linear_time"],
        "the first key is called repeated",
    ),
    (
        "cir_cot/files.py",
        "        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not",
        "        if not",
        ["tests/test_files.py::test_a_file_system_that_cannot_sync_folders_is_written_to"],
        "a broken disk is passed over when the folder is synced",
    ),
    # ---- cir_cot/chains/filters.py
    (
        "cir_cot/chains/filters.py",
        "LONGEST_LOOP = 12",
        "LONGEST_LOOP = 11",
        [
            "tests/chains/test_filters.py::test_a_repetition_is_12_words_3_times_in_a_row_or_6_words_at_3_places"
        ],
        "the filters' loop",
    ),
    (
        "cir_cot/chains/filters.py",
        "\nLOOPS = 3",
        "\nLOOPS = 2",
        [
            "tests/chains/test_filters.py::test_a_repetition_is_12_words_3_times_in_a_row_or_6_words_at_3_places"
        ],
        "twice is a loop",
    ),
    (
        "cir_cot/chains/filters.py",
        "NGRAM = 6",
        "NGRAM = 5",
        [
            "tests/chains/test_filters.py::test_a_repetition_is_12_words_3_times_in_a_row_or_6_words_at_3_places"
        ],
        "the filters' n-gram",
    ),
    (
        "cir_cot/chains/filters.py",
        "OCCURRENCES = 3",
        "OCCURRENCES = 4",
        [
            "tests/chains/test_filters.py::test_a_repetition_is_12_words_3_times_in_a_row_or_6_words_at_3_places"
        ],
        "the n-gram's occurrences",
    ),
    (
        "cir_cot/chains/filters.py",
        "|image|picture|photo|",
        "|image|photo|",
        ["tests/chains/test_filters.py::test_common_words_and_short_ones_are_not_salient"],
        "the filters' word list",
    ),
    (
        "cir_cot/chains/filters.py",
        "if len(word) > 2 and",
        "if len(word) > 3 and",
        ["tests/chains/test_filters.py::test_common_words_and_short_ones_are_not_salient"],
        "words of three letters",
    ),
    (
        "cir_cot/chains/filters.py",
        "|[\\x00-\\x08\\x0b",
        "|[\\x01-\\x08\\x0b",
        ["tests/chains/test_filters.py::test_each_filter_catches_what_it_names"],
        "a NUL in a chain",
    ),
    (
        "cir_cot/chains/filters.py",
        "if confidence > CONFIDENCE:",
        "if confidence >= CONFIDENCE:",
        ["tests/chains/test_filters.py::test_the_verifier_has_to_be_confident"],
        "a confidence at the threshold",
    ),
    # ---- cir_cot/data/genecis.py
    (
        "cir_cot/data/genecis.py",
        "list(dict.fromkeys([target, *listed]))",
        "[target, *listed]",
        ["tests/data/test_datasets.py::test_genecis_ranks_its_own_candidates"],
        "a candidate listed twice counts twice",
    ),
    (
        "cir_cot/data/genecis.py",
        "len(numbers) == 4 and",
        "len(numbers) >= 4 and",
        ["tests/data/test_datasets.py::test_genecis_of_other_forms_is_refused"],
        "a box of five numbers",
    ),
    (
        "cir_cot/data/genecis.py",
        "min(numbers[2:]) <= 0",
        "min(numbers[2:]) < 0",
        ["tests/data/test_datasets.py::test_genecis_of_other_forms_is_refused"],
        "a box without a width",
    ),
    (
        "cir_cot/data/genecis.py",
        '.jpg", box)',
        '.jpg", None)',
        ["tests/data/test_datasets.py::test_genecis_ranks_its_own_candidates"],
        "the whole picture is shown in place of its box",
    ),
    (
        "cir_cot/data/genecis.py",
        "    if not valid or min(numbers[2:]) <= 0:",
        "    if not valid:",
        ["tests/data/test_datasets.py::test_genecis_of_other_forms_is_refused"],
        "an empty box is read",
    ),
    # ---- cir_cot/training/gradcache.py
    (
        "cir_cot/training/loading.py",
        "max(8, budget // ROW_TOKENS)",
        "max(1, budget // ROW_TOKENS)",
        [
            "tests/training/test_gradcache.py::test_long_rows_share_chunks_and_one_that_fits_exactly_is_filled",
            "tests/training/test_gradcache.py::test_a_part_has_at_least_eight_rows",
            "tests/training/test_gradcache.py::test_stretched_chunks_weigh_the_same_rows",
        ],
        "parts of a single row",
    ),
    (
        "cir_cot/training/chunks.py",
        "len(together) * width <= budget",
        "len(together) * width < budget",
        [
            "tests/training/test_gradcache.py::test_long_rows_share_chunks_and_one_that_fits_exactly_is_filled",
            "tests/training/test_gradcache.py::test_a_part_has_at_least_eight_rows",
            "tests/training/test_gradcache.py::test_stretched_chunks_weigh_the_same_rows",
        ],
        "a chunk that fits exactly is cut",
    ),
    (
        "cir_cot/training/chunks.py",
        "(-query[row] - target[row], row)",
        "(query[row] + target[row], row)",
        [
            "tests/training/test_gradcache.py::test_long_rows_share_chunks_and_one_that_fits_exactly_is_filled",
            "tests/training/test_gradcache.py::test_a_part_has_at_least_eight_rows",
            "tests/training/test_gradcache.py::test_stretched_chunks_weigh_the_same_rows",
        ],
        "short rows first: chunks are padded",
    ),
    (
        "cir_cot/training/chunks.py",
        "* (count - len(chunks))",
        "* (count - len(chunks) + 1)",
        [
            "tests/training/test_gradcache.py::test_long_rows_share_chunks_and_one_that_fits_exactly_is_filled",
            "tests/training/test_gradcache.py::test_a_part_has_at_least_eight_rows",
            "tests/training/test_gradcache.py::test_stretched_chunks_weigh_the_same_rows",
        ],
        "a chunk too many",
    ),
    (
        "cir_cot/training/chunks.py",
        "replace(chunks[-1], counted=False)",
        "replace(chunks[-1], counted=True)",
        [
            "tests/training/test_gradcache.py::test_long_rows_share_chunks_and_one_that_fits_exactly_is_filled",
            "tests/training/test_gradcache.py::test_a_part_has_at_least_eight_rows",
            "tests/training/test_gradcache.py::test_stretched_chunks_weigh_the_same_rows",
        ],
        "filled-in chunks weigh",
    ),
    (
        "cir_cot/training/chunks.py",
        '        chosen["labels"] = chosen["labels"][:, columns]\n',
        "        pass\n",
        [
            "tests/training/test_gradcache.py::test_a_selected_row_is_the_row_collated_alone",
            "tests/training/test_gradcache.py::test_loss_and_every_gradient_are_those_of_the_plain_step",
        ],
        "labels keep the padding",
    ),
    (
        "cir_cot/training/chunks.py",
        "int(used[-1]) + 1)",
        "int(used[-1]))",
        ["tests/training/test_gradcache.py::test_a_selected_row_is_the_row_collated_alone"],
        "the last token is cut off",
    ),
    (
        "cir_cot/training/gradcache.py",
        "            set_random_state(cache.states[number], device)\n",
        "            pass\n",
        ["tests/training/test_gradcache.py::test_both_passes_draw_the_same_dropout"],
        "both passes draw their own dropout",
    ),
    (
        "cir_cot/training/gradcache.py",
        "(value[:count] * gradient).sum()",
        "(value[:count] * gradient).mean()",
        [
            "tests/training/test_gradcache.py::test_loss_and_every_gradient_are_those_of_the_plain_step"
        ],
        "gradients of embeddings are averaged",
    ),
    (
        "cir_cot/training/gradcache.py",
        "(cast(Tensor, mine.grad) if last else 0.0)",
        "(cast(Tensor, mine.grad) if True else 0.0)",
        [
            "tests/training/test_gradcache.py::test_loss_and_every_gradient_are_those_of_the_plain_step"
        ],
        "the temperature's gradient is added with every chunk",
    ),
    (
        "cir_cot/training/gradcache.py",
        "MAX_CHANGE = 0.5\n",
        "MAX_CHANGE = 50\n",
        ["tests/training/test_gradcache.py::test_a_head_that_is_not_repeatable_is_reported"],
        "a head that is not repeatable is trained",
    ),
    (
        "cir_cot/training/gradcache.py",
        "        stop = self.start + count\n",
        "        stop = self.start + len(chunk)\n",
        [
            "tests/training/test_gradcache.py::test_loss_and_every_gradient_are_those_of_the_plain_step"
        ],
        "the rows of chunks without weight are skipped",
        "chunks without weight are the last ones: nothing starts behind them",
    ),
    (
        "cir_cot/training/gradcache.py",
        "            if mine.grad is not None:",
        "            if mine.grad is not None and count:",
        [
            "tests/training/test_gradcache.py::test_a_chunk_without_weight_gives_every_parameter_a_gradient_of_zero"
        ],
        "a process without rows falls out of step",
    ),
    # ---- cir_cot/heads/__init__.py
    (
        "cir_cot/heads/__init__.py",
        'if metadata["kind"] not in HEADS:',
        "if False:",
        [
            "tests/contract/test_retriever_contract.py::test_a_folder_that_is_no_such_retriever_is_refused_by_name"
        ],
        "an unknown kind is a KeyError",
    ),
    # ---- cir_cot/heads/clip.py
    (
        "cir_cot/heads/clip.py",
        "Combination(image + text)",
        "Combination(image - text)",
        ["tests/models/test_clip.py::test_the_query_is_the_sum_and_the_loss_clip4cirs"],
        "the query is a difference",
    ),
    (
        "cir_cot/heads/clip.py",
        "temperature: float = 0.01",
        "temperature: float = 0.02",
        ["tests/models/test_clip.py::test_the_query_is_the_sum_and_the_loss_clip4cirs"],
        "logits are 50 times the cosine",
    ),
    (
        "cir_cot/heads/clip.py",
        "return functional.normalize(vectors.float(), dim=-1)",
        "return vectors.float()",
        ["tests/models/test_clip.py::test_the_query_is_the_sum_and_the_loss_clip4cirs"],
        "CLIP's sum is not normalised",
    ),
    (
        "cir_cot/heads/clip.py",
        '"pad_ratio": self.backbone.inputs.pad_ratio}',
        '"pad_ratio": 0.0}',
        ["tests/models/test_clip.py::test_stage_one_leaves_a_retriever_that_is_a_checkpoint_too"],
        "the padding is not saved",
    ),
    # ---- cir_cot/heads/cot.py
    (
        "cir_cot/retriever.py",
        'Reading("short", parts=("conclusion",))',
        'Reading("short", parts=PARTS)',
        [
            "tests/heads/test_decoding.py::test_whatever_the_model_would_write_the_chain_is_in_form_and_within_its_budget"
        ],
        "the short reading writes all parts",
    ),
    (
        "cir_cot/heads/adaptive.py",
        ">= self.threshold",
        "< self.threshold",
        [
            "tests/heads/test_decoding.py::test_the_adaptive_reading_is_full_below_its_threshold_and_fast_above"
        ],
        "the adaptive reading is the other way round",
    ),
    (
        "cir_cot/heads/adaptive.py",
        "logits[:, self.backbone.ret_id] - logits[:, start])",
        "logits[:, start] - logits[:, self.backbone.ret_id])",
        [
            "tests/heads/test_decoding.py::test_the_adaptive_reading_is_full_below_its_threshold_and_fast_above"
        ],
        "sureness is doubt",
    ),
    (
        "cir_cot/heads/cot.py",
        "        if max_new_tokens < 1:",
        "        if max_new_tokens < 0:",
        ["tests/contract/test_retriever_contract.py::test_unusable_settings_are_named"],
        "a chain of no tokens",
    ),
    (
        "cir_cot/heads/cot.py",
        "if not 0 <= chain_dropout <= 1:",
        "if not 0 <= chain_dropout:",
        ["tests/contract/test_retriever_contract.py::test_unusable_settings_are_named"],
        "a chain dropout above 1",
    ),
    (
        "cir_cot/heads/qwen.py",
        "wanted = labels[:, 1:]",
        "wanted = labels[:, :-1]",
        [
            "tests/contract/test_retriever_contract.py::test_chain_loss_is_the_mean_cross_entropy_of_the_chains_tokens"
        ],
        "each token predicts itself",
    ),
    (
        "cir_cot/heads/cot.py",
        'if readout["projection"] != foreign.dim:',
        "if False:",
        ["tests/models/test_foreign_space.py"],
        "a projection that does not fit the target encoder",
    ),
    (
        "cir_cot/heads/cot.py",
        "return functional.normalize(vectors.float(), dim=-1)",
        "return vectors.float()",
        ["tests/models/test_foreign_space.py"],
        "foreign targets are not normalised",
    ),
    # ---- cir_cot/heads/moe.py
    (
        "cir_cot/heads/combiners.py",
        "torch.cat(passed)[order.argsort()]",
        "torch.cat(passed)[order]",
        ["tests/heads/test_moe.py::test_sorted_by_expert_equals_row_by_row"],
        "experts' outputs go to other rows",
    ),
    (
        "cir_cot/heads/combiners.py",
        "top.softmax(dim=1), logits)",
        "logits.softmax(dim=1).gather(1, chosen), logits)",
        ["tests/heads/test_moe.py::test_sorted_by_expert_equals_row_by_row"],
        "weights of the chosen do not sum to 1",
    ),
    (
        "cir_cot/heads/combiners.py",
        "out if self.shared is None else out + self.shared(z)",
        "out",
        ["tests/heads/test_moe.py::test_every_row_passes_the_shared_expert_of_the_improved_layer"],
        "the shared expert is left out",
    ),
    (
        "cir_cot/heads/combiners.py",
        "self.mix(z) + weight * text + (1 - weight) * image, weight, None",
        "self.mix(z) + weight * image + (1 - weight) * text, weight, None",
        ["tests/heads/test_moe.py::test_dense_is_clip4cirs_formula"],
        "the gate weighs the picture",
    ),
    (
        "cir_cot/heads/combiners.py",
        "self.mix(mixed) + weight * text",
        "weight * text",
        ["tests/heads/test_moe.py::test_faithful_is_the_published_formula"],
        "the mixture is left out",
    ),
    (
        "cir_cot/heads/combiners.py",
        "self.norm(tokens + attended)",
        "self.norm(attended)",
        ["tests/heads/test_moe.py::test_faithful_is_the_published_formula"],
        "no residual around the attention",
    ),
    (
        "cir_cot/heads/combiners.py",
        "                nn.init.zeros_(layer.weight)",
        "                pass",
        ["tests/heads/test_moe.py::test_the_improved_combiner_starts_at_the_sum_of_stage_one"],
        "training does not start at the sum",
    ),
    (
        "cir_cot/heads/moe.py",
        "if self.training and route.logits is not None:",
        "if route.logits is not None:",
        ["tests/heads/test_moe.py::test_the_losses_of_the_router_are_those_of_the_batch"],
        "the router's losses in evaluation",
    ),
    (
        "cir_cot/heads/moe.py",
        "if not 1 <= top_k <= experts:",
        "if not 0 <= top_k <= experts:",
        ["tests/heads/test_moe.py::test_unusable_settings_are_named"],
        "no expert a row",
    ),
    (
        "cir_cot/heads/combiners.py",
        "(rows, count), 1 / count)",
        "(rows, count), 1.0)",
        [
            "tests/heads/test_moe.py::test_random_routing_is_even_in_training_and_an_average_afterwards"
        ],
        "random routing sums experts",
    ),
    # ---- cir_cot/heads/prompt_pool.py
    (
        "cir_cot/heads/prompt_choice.py",
        "torch.logsumexp(SHARPNESS * self.scores",
        "torch.logsumexp(self.scores",
        ["tests/heads/test_prompt_pool.py::test_losses_have_their_closed_form"],
        "the push is blunt",
    ),
    (
        "cir_cot/heads/prompt_choice.py",
        " + even_use(probabilities)",
        "",
        ["tests/heads/test_prompt_pool.py::test_losses_have_their_closed_form"],
        "nothing revives an idle prompt",
    ),
    (
        "cir_cot/heads/prompt_pool.py",
        'for side in ("query", "target"):\n            if f',
        'for side in ("query",):\n            if f',
        ["tests/heads/test_prompt_pool.py::test_losses_have_their_closed_form"],
        "targets' choices are not balanced",
    ),
    (
        "cir_cot/heads/prompt_choice.py",
        "SHARPNESS = 10.0",
        "SHARPNESS = 1.0",
        ["tests/heads/test_prompt_pool.py::test_losses_have_their_closed_form"],
        "cosines become nearly even probabilities",
    ),
    (
        "cir_cot/heads/prompt_pool.py",
        "functional.layer_norm(mean, mean.shape[1:])",
        "mean",
        [
            "tests/heads/test_prompt_pool.py::test_the_chosen_are_the_best_by_cosine_of_picture_and_words"
        ],
        "visual tokens outweigh the words",
    ),
    (
        "cir_cot/heads/prompt_pool.py",
        "functional.normalize(self.keys.float(), dim=1)",
        "self.keys.float()",
        [
            "tests/heads/test_prompt_pool.py::test_the_chosen_are_the_best_by_cosine_of_picture_and_words"
        ],
        "long keys are chosen",
    ),
    (
        "cir_cot/heads/connector.py",
        "            picture[:, None, None],\n",
        "",
        [
            "tests/heads/test_prompt_pool.py::test_the_connector_reads_the_picture_alone_and_starts_at_its_queries"
        ],
        "the Connector reads the words",
    ),
    (
        "cir_cot/heads/prompt_choice.py",
        ".clamp(min=1)",
        "",
        ["tests/heads/test_prompt_pool.py::test_a_query_without_words_is_read"],
        "a mean over no word is not a number",
    ),
    (
        "cir_cot/heads/prompt_choice.py",
        "key=scores.__getitem__, reverse=True",
        "key=scores.__getitem__",
        [
            "tests/heads/test_prompt_pool.py::test_an_explanation_shows_the_cosines_of_the_chosen_prompts_highest_first"
        ],
        "the worst prompt is named first",
    ),
    (
        "cir_cot/heads/prompt_pool.py",
        "not 1 <= top <= pool:",
        "not 0 <= top <= pool:",
        ["tests/heads/test_prompt_pool.py::test_unusable_settings_are_named"],
        "a row takes no prompt",
    ),
    (
        "cir_cot/heads/prompt_pool.py",
        'self.task_tokens if side == "query" else 0',
        "self.task_tokens",
        ["tests/heads/test_prompt_pool.py::test_the_users_words_fill_no_places_and_are_found"],
        "a target's task prompt is cut",
    ),
    (
        "cir_cot/heads/qwen.py",
        "                options[name] = value\n",
        "                pass\n",
        ["tests/contract/test_retriever_contract.py::test_pictures_keep_the_bounds_of_training"],
        "an adapter is used at the base's resolution",
    ),
    # ---- cir_cot/heads/qwen.py
    (
        "cir_cot/heads/qwen.py",
        ".clamp(COLDEST, WARMEST)",
        "",
        [
            "tests/contract/test_retriever_contract.py::test_a_learned_temperature_starts_where_it_is_told_and_stays_within_its_bounds"
        ],
        "a learned temperature leaves its bounds",
    ),
    (
        "cir_cot/heads/qwen.py",
        "if not COLDEST <= temperature <= WARMEST:",
        "if not COLDEST <= temperature:",
        ["tests/contract/test_retriever_contract.py::test_unusable_settings_are_named"],
        "a temperature above 1 is accepted",
    ),
    (
        "cir_cot/heads/qwen.py",
        "torch.tensor([math.log(temperature)])",
        "torch.tensor([temperature])",
        [
            "tests/contract/test_retriever_contract.py::test_a_learned_temperature_starts_where_it_is_told_and_stays_within_its_bounds"
        ],
        "the temperature starts elsewhere",
    ),
    (
        "cir_cot/heads/qwen.py",
        "requires_grad=learn_temperature\n        )",
        "requires_grad=True)",
        [
            "tests/contract/test_retriever_contract.py::test_a_learned_temperature_starts_where_it_is_told_and_stays_within_its_bounds"
        ],
        "the temperature is always trained",
    ),
    (
        "cir_cot/heads/qwen.py",
        '- int(self.readout == "before_ret")',
        "",
        [
            "tests/heads/test_decoding.py::test_vectors_are_those_of_reading_the_written_tokens_in_any_batch_and_order"
        ],
        "before_ret reads at the token",
    ),
    (
        "cir_cot/heads/qwen.py",
        "return functional.normalize(hidden.float(), dim=-1)",
        "return functional.normalize(hidden.float(), dim=0)",
        [
            "tests/contract/test_retriever_contract.py::test_embeddings_are_unit_float32_vectors_of_the_stated_dimension"
        ],
        "normalised over the batch",
    ),
    (
        "cir_cot/heads/qwen.py",
        "return functional.normalize(hidden.float(), dim=-1)",
        "return hidden.float()",
        [
            "tests/contract/test_retriever_contract.py::test_embeddings_are_unit_float32_vectors_of_the_stated_dimension"
        ],
        "not normalised",
    ),
    (
        "cir_cot/heads/qwen.py",
        "        head.check(metadata, folder)\n",
        "",
        [
            "tests/models/test_damaged_retriever.py::test_a_damaged_file_is_refused_in_one_line[retriever.json: dim other]"
        ],
        "a wrong dim reaches the index",
    ),
    (
        "cir_cot/heads/qwen.py",
        ".exp().clamp(COLDEST, WARMEST)",
        ".exp()",
        [
            "tests/contract/test_retriever_contract.py::test_a_learned_temperature_stays_within_its_bounds_and_is_saved_so"
        ],
        "a learned temperature leaves its bounds",
    ),
    # ---- cir_cot/picture_files.py
    (
        "cir_cot/picture_files.py",
        'if any(part.startswith(".") for part in file.parts):',
        "if False:",
        [
            "tests/test_picture_files.py::test_hidden_files_are_left_out_and_the_rest_counted_by_kind"
        ],
        "._shirt.jpg is a picture",
    ),
    (
        "cir_cot/picture_files.py",
        "if first != file.as_posix():",
        "if False:",
        ["tests/test_picture_files.py::test_two_pictures_of_one_id_are_refused_and_found_by_check"],
        "the second picture of an id is dropped in silence",
    ),
    (
        "cir_cot/picture_files.py",
        "if Path(name).suffix.lower() in EXTENSIONS]",
        "if Path(name).suffix in EXTENSIONS]",
        ["tests/test_picture_files.py::test_both_lookups_find_the_same_pictures"],
        ".JPG is found in a folder, not by its id",
    ),
    # ---- cir_cot/images.py
    (
        "cir_cot/images.py",
        "    if width * height > max_pixels:",
        "    if width * height >= max_pixels:",
        ["tests/test_images.py::test_the_exact_number_of_pixels_is_allowed"],
        "exactly as many pixels as allowed are refused",
    ),
    (
        "cir_cot/images.py",
        "        if len(raw) > self.max_bytes:",
        "        if len(raw) >= self.max_bytes:",
        ["tests/test_images.py::test_too_many_bytes_are_refused"],
        "exactly as many bytes as allowed are refused",
    ),
    (
        "cir_cot/images.py",
        "file.read(self.max_bytes + 1)",
        "file.read(self.max_bytes)",
        ["tests/test_images.py::test_too_many_bytes_are_refused"],
        "a large file is cut in silence",
    ),
    (
        "cir_cot/images.py",
        "if max(width, height) > MAX_RATIO * min(width, height) > 0:",
        "if max(width, height) >= MAX_RATIO * min(width, height) > 0:",
        ["tests/test_images.py::test_the_longest_pictures_that_the_models_take_are_let_pass"],
        "200:1 is refused",
    ),
    (
        "cir_cot/images.py",
        "if max(width, height) > MAX_RATIO * min(width, height) > 0:",
        "if False:",
        ["tests/test_images.py::test_a_picture_that_is_too_long_for_its_width_is_refused_by_name"],
        "pictures of 4000 x 3 stop the models",
    ),
    (
        "cir_cot/images.py",
        '".." in relative.parts',
        "False",
        ["tests/test_images.py::test_ids_do_not_leave_the_folder"],
        "an id leaves the folder",
    ),
    (
        "cir_cot/images.py",
        "        if not path.is_relative_to(self.root):",
        "        if False:",
        ["tests/test_images.py::test_links_do_not_leave_the_folder"],
        "a link leads out of the folder",
    ),
    (
        "cir_cot/images.py",
        'repr(self.boxes.get(image_id, "")).encode()',
        'b""',
        ["tests/test_images.py::test_two_boxes_of_a_picture_have_two_fingerprints"],
        "two boxes of a picture have one fingerprint",
    ),
    # ---- cir_cot/search/faiss_index.py
    (
        "cir_cot/search/faiss_index.py",
        "if len(self.ids) != count or distinct != count:",
        "if False:",
        ["tests/search/test_index_files.py::test_damage_that_no_digest_would_tell_is_found_too"],
        "no row-count check of an index",
    ),
    (
        "cir_cot/search/faiss_index.py",
        "if len(self.ids) != count or distinct != count:",
        "if len(self.ids) != count:",
        ["tests/search/test_index_files.py::test_damage_that_no_digest_would_tell_is_found_too"],
        "a picture twice in an index",
    ),
    (
        "cir_cot/search/faiss_stores.py",
        "        if not np.isfinite(block).all():",
        "        if False:",
        ["tests/search/test_index_files.py::test_damage_that_no_digest_would_tell_is_found_too"],
        "NaN in an index",
    ),
    (
        "cir_cot/search/faiss_index.py",
        "order = np.lexsort((rows, -scores))[:k]",
        "order = np.lexsort((-rows, -scores))[:k]",
        [
            "tests/search/test_faiss_index.py::test_equal_scores_come_in_the_order_of_the_gallery_however_many_there_are"
        ],
        "ties in the wrong order",
    ),
    (
        "cir_cot/search/faiss_stores.py",
        "queries.shape[1] * 2.0**-23",
        "0 * 2.0**-23",
        [
            "tests/search/test_faiss_index.py::test_equal_scores_come_in_the_order_of_the_gallery_however_many_there_are",
            "tests/search/test_faiss_index.py::test_near_equal_scores_that_float32_sums_may_swap_are_ordered_by_float64",
        ],
        "float32 decides",
    ),
    # ---- cir_cot/search/index_files.py
    (
        "cir_cot/search/index_files.py",
        "            if number not in (0, current):",
        "            if number != current:",
        [
            "tests/search/test_index_files.py::test_files_of_others_stay_whatever_an_index_does_beside_them"
        ],
        "rows.0.jsonl of a user is removed",
    ),
    (
        "cir_cot/search/index_files.py",
        "        number = 1 + max(_used_numbers(folder), default=old)",
        "        number = 1 + old",
        [
            "tests/search/test_index_files.py::test_files_of_others_stay_whatever_an_index_does_beside_them"
        ],
        "a user's file is in the way",
    ),
    (
        "cir_cot/search/index_files.py",
        "        finally:\n            settle(folder)",
        "        finally:\n            pass",
        [
            "tests/search/test_index_files.py::test_a_full_disk_leaves_the_old_index_and_nothing_else"
        ],
        "a failed save leaves its files",
    ),
    (
        "cir_cot/search/index_files.py",
        "        old = settle(folder)\n",
        "        old = read_metadata(folder).get('number', 0) if (folder / 'index.json').exists() else 0\n",
        [
            "tests/search/test_index_files.py::test_wherever_a_save_is_killed_the_old_or_the_new_state_is_whole_and_the_rest_is_removed_later"
        ],
        "what a killed save left stays for ever",
    ),
    (
        "cir_cot/search/index_files.py",
        "                digests[part] = _write_store(folder / names[part], store)\n            sync(folder)",
        "                digests[part] = _write_store(folder / names[part], store)",
        [
            "tests/search/test_index_files.py::test_a_save_forces_files_then_folder_then_names_to_the_disk_in_that_order"
        ],
        "index.json names files whose names are not on the disk",
    ),
    (
        "cir_cot/search/index_files.py",
        "        faiss.write_index(store, _FAISS_IO.PyCallbackIOWriter(write))\n        file.flush()\n        os.fsync(file.fileno())",
        "        faiss.write_index(store, _FAISS_IO.PyCallbackIOWriter(write))",
        [
            "tests/search/test_index_files.py::test_a_save_forces_files_then_folder_then_names_to_the_disk_in_that_order"
        ],
        "vectors are not on the disk",
    ),
    (
        "cir_cot/search/index_files.py",
        "            digest.update(chunk)\n        file.flush()\n        os.fsync(file.fileno())",
        "            digest.update(chunk)\n        file.flush()",
        [
            "tests/search/test_index_files.py::test_a_save_forces_files_then_folder_then_names_to_the_disk_in_that_order"
        ],
        "rows are not on the disk",
    ),
    (
        "cir_cot/search/index_files.py",
        "if digest is not None and found != digest:",
        "if False:",
        ["tests/search/test_index_files.py::test_damage_is_one_line_that_names_the_place"],
        "a flipped bit is not noticed",
    ),
    (
        "cir_cot/search/index_files.py",
        "if (store.ntotal, store.d) != (count, width):",
        "if store.d != width:",
        ["tests/search/test_index_files.py::test_an_approximate_kinds_second_file_is_checked"],
        "the number of vectors is not checked",
    ),
    (
        "cir_cot/search/index_files.py",
        '    except (RuntimeError, MemoryError) as error:\n        raise InputError(f"{path}: cannot be read',
        '    except MemoryError as error:\n        raise InputError(f"{path}: cannot be read',
        ["tests/search/test_index_files.py::test_damage_that_no_digest_would_tell_is_found_too"],
        "a damaged store is a traceback",
    ),
    (
        "cir_cot/search/index_files.py",
        "        if not is_valid(value):",
        "        if False:",
        ["tests/search/test_index_files.py::test_damage_is_one_line_that_names_the_place"],
        "a damaged index.json is a traceback",
    ),
    (
        "cir_cot/search/index_files.py",
        'if not isinstance(row, dict) or not isinstance(row.get("payload", {}), dict):',
        "if not isinstance(row, dict):",
        ["tests/search/test_index_files.py::test_damage_that_no_digest_would_tell_is_found_too"],
        "a damaged payload is loaded",
    ),
    # ---- cir_cot/search/build.py
    (
        "cir_cot/search/build.py",
        "    with locked(folder) if ranks.first else nullcontext():",
        "    with nullcontext():",
        [
            "tests/search/test_index_files.py::test_a_second_process_on_the_folder_is_refused_and_the_first_ones_index_is_right"
        ],
        "two processes write one index",
    ),
    (
        "cir_cot/search/build.py",
        "    with locked(Path(folder)):\n        index = open_index(folder)",
        "    with nullcontext():\n        index = open_index(folder)",
        [
            "tests/search/test_index_files.py::test_an_index_cannot_be_changed_while_another_process_writes_it"
        ],
        "an index is changed while another process writes it",
    ),
    (
        "cir_cot/search/build.py",
        "        if escaped(name) == name:",
        "        if True:",
        [
            "tests/search/test_index_files.py::test_a_file_name_that_is_no_utf_8_is_left_out_by_name_before_anything_is_encoded"
        ],
        "a name that is no UTF-8 breaks the index at the end",
    ),
    (
        "cir_cot/search/build.py",
        "    unreadable |= unnamed\n",
        "",
        [
            "tests/search/test_index_files.py::test_a_file_name_that_is_no_utf_8_is_left_out_by_name_before_anything_is_encoded"
        ],
        "a picture is left out silently",
    ),
    (
        "cir_cot/search/build.py",
        'metadata |= {"images": escaped(str(images.root)),',
        'metadata |= {"images": str(images.root),',
        [
            "tests/search/test_index_files.py::test_a_folder_name_that_is_no_utf_8_does_not_stop_an_index"
        ],
        "a folder that is no UTF-8 breaks the index at the end",
    ),
    (
        "cir_cot/search/build.py",
        "        if held != wanted:",
        "        if False:",
        ["tests/search/test_faiss_index.py::test_a_settled_index_keeps_its_settings"],
        "an index of two dtypes",
    ),
    (
        "cir_cot/search/build.py",
        "    old.check(retriever, str(folder))\n",
        "",
        ["tests/search/test_faiss_index.py::test_another_retriever_is_refused"],
        "vectors of two retrievers in one index",
    ),
    # ---- cir_cot/chains/job.py
    (
        "cir_cot/chains/job.py",
        "    if retry:\n        quarantined = set()\n",
        "",
        [
            "tests/chains/test_annotate.py::test_rows_in_quarantine_are_asked_again_where_that_is_wanted"
        ],
        "--retry-quarantine does nothing",
    ),
    (
        "cir_cot/chains/job.py",
        "                    refused.add(json.dumps(line))\n",
        "",
        ["tests/chains/test_annotate.py::test_what_other_processes_wrote_is_merged_once"],
        "doubled quarantine on merge, within a share",
    ),
    (
        "cir_cot/chains/job.py",
        "                if json.dumps(line) not in refused:",
        "                if True:",
        ["tests/chains/test_annotate.py::test_what_other_processes_wrote_is_merged_once"],
        "doubled quarantine on merge",
    ),
    (
        "cir_cot/chains/job.py",
        "                    keys.add(key)\n",
        "",
        ["tests/chains/test_annotate.py::test_what_other_processes_wrote_is_merged_once"],
        "doubled chains on merge, within a share",
    ),
    (
        "cir_cot/chains/job.py",
        "                if key not in keys:",
        "                if True:",
        ["tests/chains/test_annotate.py::test_what_other_processes_wrote_is_merged_once"],
        "doubled chains on merge",
    ),
    (
        "cir_cot/chains/job.py",
        "            # Merged rows reach the disk before the files that held them are deleted.\n            self.sync()\n",
        "",
        [
            "tests/chains/test_journal.py::test_merged_rows_are_on_the_disk_before_the_files_that_held_them_are_removed"
        ],
        "shares are removed before their rows are on the disk",
    ),
    (
        "cir_cot/chains/job.py",
        '        self.journal.sync()\n        self.quarantine_journal.sync()\n        write_text_atomic(self.summary_path, json.dumps(self.summary()) + "\\n")',
        '        write_text_atomic(self.summary_path, json.dumps(self.summary()) + "\\n")\n        self.journal.sync()\n        self.quarantine_journal.sync()',
        [
            "tests/chains/test_journal.py::test_rows_reach_the_disk_before_the_summary_that_counts_them"
        ],
        "the summary counts rows that are not on the disk",
    ),
    (
        "cir_cot/chains/job.py",
        "type(count) in (int, float) and 0 <= count <= MOST",
        "isinstance(count, int | float)",
        ["tests/chains/test_journal.py::test_a_broken_file_of_a_job_is_refused_in_one_line"],
        "negative and endless counts are carried on",
    ),
    (
        "cir_cot/chains/journal.py",
        "if held != wanted and used and held:",
        "if False:",
        [
            "tests/chains/test_annotate.py::test_other_settings_on_one_output_are_refused_and_so_are_other_texts"
        ],
        "other settings go on in one output",
    ),
    (
        "cir_cot/chains/journal.py",
        "            if held != wanted:\n                os.pwrite",
        "            if True:\n                os.ftruncate(handle, 0)\n                os.pwrite",
        ["tests/chains/test_journal.py::test_settings_survive_a_full_disk"],
        "a full disk empties the settings",
    ),
    (
        "cir_cot/chains/job.py",
        "task.key not in done and task.name not in quarantined]",
        "task.key not in done]",
        [
            "tests/chains/test_annotate.py::test_with_a_hostile_server_every_row_ends_with_the_right_reason"
        ],
        "rows in quarantine are asked again",
    ),
    (
        "cir_cot/chains/job.py",
        "        except BaseException:\n            os.close(self.lock)\n            raise\n",
        "        finally:\n            pass\n",
        ["tests/chains/test_journal.py::test_a_job_that_cannot_begin_frees_its_output"],
        "a job that cannot begin keeps its lock",
    ),
    # ---- cir_cot/chains/journal.py
    (
        "cir_cot/chains/journal.py",
        '        self.write(b"\\n")\n',
        "",
        ["tests/chains/test_journal.py::test_a_whole_last_line_gets_its_end_before_the_next_one"],
        "a whole last line without newline is glued to the next",
    ),
    (
        "cir_cot/chains/journal.py",
        "            os.ftruncate(self.file, size - len(tail))\n            return",
        "            os.ftruncate(self.file, 0)\n            return",
        ["tests/chains/test_journal.py::test_a_torn_last_line_is_cut_off_and_nothing_else"],
        "a torn line takes the others with it",
    ),
    (
        "cir_cot/chains/journal.py",
        "        if end:\n            check(",
        "        if False:\n            check(",
        [
            "tests/chains/test_journal.py::test_a_file_that_is_no_journal_is_refused_and_left_as_it_is"
        ],
        "the last line of any JSON lines is cut",
    ),
    (
        "cir_cot/chains/journal.py",
        " or not (end or first.startswith(BEGIN[: len(first)]))",
        "",
        [
            "tests/chains/test_journal.py::test_a_file_that_is_no_journal_is_refused_and_left_as_it_is"
        ],
        "a note without line ends is cut",
    ),
    (
        "cir_cot/chains/journal.py",
        "            os.ftruncate(self.file, before)\n",
        "",
        ["tests/chains/test_annotate.py::test_a_full_disk_is_an_error_and_no_torn_line"],
        "a full disk leaves half a line",
    ),
    (
        "cir_cot/chains/journal.py",
        "                os.fsync(self.file)",
        "                pass",
        [
            "tests/chains/test_journal.py::test_rows_reach_the_disk_before_the_summary_that_counts_them"
        ],
        "rows are not forced to the disk",
    ),
    (
        "cir_cot/chains/journal.py",
        "                sync(path.parent)  #",
        "                pass  #",
        [
            "tests/chains/test_journal.py::test_a_new_file_has_its_name_on_the_disk_before_rows_are_forced_there"
        ],
        "a new file's name is not forced to the disk",
    ),
    (
        "cir_cot/chains/journal.py",
        "    if record.cot is None:",
        "    if False:",
        [
            "tests/chains/test_journal.py::test_a_broken_file_of_a_job_is_refused_in_one_line[cot null]"
        ],
        "a null chain counts as done",
    ),
    (
        "cir_cot/chains/journal.py",
        "            if len(line) > LONGEST:",
        "            if False:",
        ["tests/chains/test_journal.py::test_a_line_of_any_length_is_read_in_bounded_pieces"],
        "a line of any length is read at once",
    ),
    # ---- cir_cot/data/layouts.py
    (
        "cir_cot/data/annotation_files.py",
        "    if twice is not None:",
        "    if False:",
        ["tests/data/test_damaged_files.py::test_an_image_listed_twice_among_many_is_found"],
        "an image is twice in the gallery",
    ),
    (
        "cir_cot/data/annotation_files.py",
        "or isinstance(value, bool):",
        "or False:",
        [
            "tests/data/test_datasets.py::test_bad_annotations_are_named_with_their_place",
            "tests/data/test_damaged_files.py::test_a_bool_is_no_number",
        ],
        "true counts as 1",
    ),
    (
        "cir_cot/data/annotation_files.py",
        "        if kind is str:",
        "        if False:",
        ["tests/data/test_damaged_files.py::test_captions_of_annotation_files_are_bounded"],
        "captions of any length are read",
    ),
    # ---- cir_cot/models/loading.py
    (
        "cir_cot/models/loading.py",
        "        if not value.is_floating_point():",
        "        if False:",
        [
            "tests/models/test_damaged_retriever.py::test_a_damaged_file_is_refused_in_one_line[head.safetensors: whole numbers]"
        ],
        "weights of whole numbers are loaded",
    ),
    (
        "cir_cot/models/loading.py",
        "        if not value.isfinite().all():",
        "        if False:",
        [
            "tests/models/test_damaged_retriever.py::test_a_damaged_file_is_refused_in_one_line[head.safetensors: NaN]"
        ],
        "weights of NaN are loaded",
    ),
    (
        "cir_cot/models/loading.py",
        "or kind is Exception",
        "",
        [
            "tests/models/test_damaged_retriever.py::test_a_damaged_file_is_refused_in_one_line[tokenizer.json: no words]"
        ],
        "a damaged tokenizer is a traceback",
    ),
    (
        "cir_cot/models/loading.py",
        "kind.__module__ in REGULAR_EXPRESSION_MODULES",
        "False",
        [
            "tests/models/test_damaged_retriever.py::test_a_damaged_file_is_refused_in_one_line[adapter_config.json: no expression]"
        ],
        "a bad expression in an adapter is a traceback",
    ),
    # ---- cir_cot/search/local_server.py
    (
        "cir_cot/search/local_server.py",
        "allowed_hosts=[*HOSTS, *hosts]",
        'allowed_hosts=["*"]',
        ["tests/search/test_demo.py::test_a_name_that_leads_here_is_not_answered"],
        "DNS rebinding is answered",
    ),
    (
        "cir_cot/search/local_server.py",
        "allowed_hosts=[*HOSTS, *hosts]",
        "allowed_hosts=[*HOSTS]",
        ["tests/search/test_demo.py::test_this_machines_names_and_named_hosts_are_answered"],
        "a named host is refused",
    ),
    (
        "cir_cot/search/local_server.py",
        '("localhost", LOCAL, "[::1]")',
        '("localhost", LOCAL)',
        ["tests/search/test_demo.py::test_this_machines_names_and_named_hosts_are_answered"],
        "the IPv6 name of this machine is refused",
    ),
    (
        "cir_cot/search/local_server.py",
        "socket.create_server((LOCAL, port))",
        'socket.create_server(("0.0.0.0", port))',
        ["tests/search/test_demo.py::test_a_port_that_is_taken_or_none_is_one_clear_line"],
        "the page is open to the network",
    ),
    (
        "cir_cot/search/local_server.py",
        "if not 0 <= port <= 65535:",
        "if not 0 <= port <= 65536:",
        ["tests/search/test_demo.py::test_a_port_that_is_taken_or_none_is_one_clear_line"],
        "port 65536 is a traceback",
    ),
    # ---- cir_cot/chains/transformers_teacher.py
    (
        "cir_cot/chains/transformers_teacher.py",
        '"image": part.image, **self.bounds}',
        '"image": part.image}',
        [
            "tests/chains/test_teacher.py::test_a_local_model_reads_pictures_in_sides_that_its_processor_keeps"
        ],
        "a local model's pictures are resized twice",
    ),
    (
        "cir_cot/chains/transformers_teacher.py",
        "                self.worker.add_done_callback(self._pass_on)\n",
        "",
        [
            "tests/chains/test_teacher.py::test_no_row_waits_for_a_worker_that_died[OSError('the disk')]"
        ],
        "rows wait for a worker that died",
    ),
    (
        "cir_cot/chains/transformers_teacher.py",
        "        for one in (*self.asked, *self.waiting):",
        "        for one in self.asked:",
        [
            "tests/chains/test_teacher.py::test_no_row_waits_for_a_worker_that_died[OSError('the disk')]"
        ],
        "rows behind the batch wait for ever",
    ),
    (
        "cir_cot/chains/transformers_teacher.py",
        "if await self._answer(self.asked) or len(self.asked) == 1:",
        "if await self._answer(self.asked) or True:",
        ["tests/chains/test_teacher.py::test_a_row_that_a_local_model_refuses_suffers_alone"],
        "a failed batch is not tried row by row",
    ),
    (
        "cir_cot/chains/transformers_teacher.py",
        "if isinstance(error, ValueError) and not isinstance(error, InputError):",
        "if isinstance(error, ValueError):",
        ["tests/chains/test_teacher.py::test_unusable_input_of_a_local_model_ends_the_job"],
        "unusable input blames a row",
    ),
    (
        "cir_cot/chains/transformers_teacher.py",
        'padding_side = "left"',
        'padding_side = "right"',
        ["tests/chains/test_teacher.py::test_a_local_model_answers_in_batches_as_it_does_alone"],
        "prompts are padded on the wrong side",
    ),
    # ---- cir_cot/losses.py
    (
        "cir_cot/losses.py",
        "target.float().T / temperature  # (B, N)",
        "target.float().T * temperature  # (B, N)",
        ["tests/test_losses.py"],
        "the temperature multiplies",
    ),
    (
        "cir_cot/losses.py",
        'masked_fill(duplicates, float("-inf"))',
        "masked_fill(duplicates, 0.0)",
        ["tests/test_losses.py"],
        "another row of the target image stays a negative",
    ),
    (
        "cir_cot/losses.py",
        "return mask.scatter(1, positives[:, None], False)",
        "return mask",
        ["tests/test_losses.py"],
        "the positive itself is masked",
    ),
    (
        "cir_cot/losses.py",
        "if (ids_query is None) != (ids_target is None):",
        "if False:",
        ["tests/test_losses.py"],
        "ids of one side only are accepted",
    ),
    (
        "cir_cot/losses.py",
        "beaten = (positive > similarity) | ~negative",
        "beaten = (positive >= similarity) | ~negative",
        ["tests/test_losses.py"],
        "a tie counts as a hit in in_batch_r1",
    ),
    (
        "cir_cot/losses.py",
        "negative.sum().clamp(min=1)",
        "negative.sum()",
        ["tests/test_losses.py"],
        "no negative divides by zero",
    ),
    (
        "cir_cot/losses.py",
        "return experts * (share * probabilities",
        "return (share * probabilities",
        ["tests/test_losses.py"],
        "the balance loses its factor",
    ),
    (
        "cir_cot/losses.py",
        "share = choice_share(chosen, experts)",
        "share = choice_share(chosen[:, :1], experts)",
        ["tests/test_losses.py"],
        "the balance counts each row's first expert alone",
    ),
    (
        "cir_cot/losses.py",
        ".clamp_min(1e-12).log().mean()",
        ".log().mean()",
        ["tests/test_losses.py"],
        "even_use is infinite where a part has probability 0",
    ),
    (
        "cir_cot/losses.py",
        "return -(mean * len(mean))",
        "return -mean",
        ["tests/test_losses.py"],
        "even_use is not 0 when even",
    ),
    (
        "cir_cot/losses.py",
        "dim=-1).square().mean()",
        "dim=-1).mean()",
        ["tests/test_losses.py"],
        "router_z is not squared",
    ),
    (
        "cir_cot/losses.py",
        "minlength=count).float() / chosen.numel()",
        "minlength=count).float() / len(chosen)",
        ["tests/test_losses.py"],
        "shares of K choices sum to K",
    ),
    (
        "cir_cot/losses.py",
        "return -similarity.gather(1, chosen).mean()",
        "return -similarity.gather(1, chosen).sum(dim=1).mean()",
        ["tests/test_losses.py"],
        "the pull sums over the chosen",
    ),
    (
        "cir_cot/losses.py",
        "F.normalize(keys.float(), dim=-1).T  # (B, M)",
        "keys.float().T  # (B, M)",
        ["tests/test_losses.py"],
        "the pull depends on the keys' lengths",
    ),
    # ---- cir_cot/profiling/counters.py
    (
        "cir_cot/peak_bytes.py",
        "self.peak = max(self.peak, self.now)",
        "self.peak = self.now",
        ["tests/profiling/test_counters.py"],
        "the peak is the last value",
    ),
    (
        "cir_cot/peak_bytes.py",
        "self.now -= self.known.pop(name, 0)",
        "self.known.pop(name, 0)",
        ["tests/profiling/test_counters.py"],
        "freed bytes still count",
    ),
    (
        "cir_cot/training/memory.py",
        "max(peak - gradients, 0) // padded",
        "(peak + gradients) // padded",
        ["tests/training/test_memory.py::test_the_estimate_is_the_peak_of_the_step"],
        "gradients count as activations",
    ),
    (
        "cir_cot/peak_bytes.py",
        "if name not in old and name not in self.known:",
        "if name not in self.known:",
        ["tests/profiling/test_counters.py"],
        "views of what was there before count",
    ),
    (
        "cir_cot/profiling/counters.py",
        "            if turn:\n",
        "            if True:\n",
        ["tests/profiling/test_counters.py"],
        "the warm-up is timed",
    ),
    # ---- cir_cot/training/step_metrics.py
    (
        "cir_cot/training/step_metrics.py",
        "torch.stack([value * count, value.new_tensor(float(count))])",
        "torch.stack([value, value.new_tensor(1.0)])",
        ["tests/training/test_step_metrics.py"],
        "means weigh batches",
    ),
    (
        "cir_cot/training/step_metrics.py",
        'part["labels"][:, 1:].ne(-100)',
        'part["labels"].ne(-100)',
        ["tests/training/test_step_metrics.py"],
        "the first position counts as supervised",
    ),
    (
        "cir_cot/training/step_metrics.py",
        "        self.reset()\n        return means",
        "        return means",
        ["tests/training/test_step_metrics.py"],
        "means run on over the whole training",
    ),
    # ---- cir_cot/data/metrics.py
    (
        "cir_cot/data/metrics.py",
        "any(image in wanted for image in ranking[:k])",
        "any(image in wanted for image in ranking[: k + 1])",
        ["tests/data/test_metrics.py"],
        "hits are counted one place too deep",
    ),
    (
        "cir_cot/data/metrics.py",
        "return max([0, *(",
        "return sum([0, *(",
        ["tests/data/test_metrics.py"],
        "graded recall sums the weights",
    ),
    (
        "cir_cot/data/metrics.py",
        "max([0, *(weights",
        "max([*(weights",
        ["tests/data/test_metrics.py"],
        "graded recall goes below nothing",
    ),
    (
        "cir_cot/data/metrics.py",
        "total += hits / place",
        "total += 1 / place",
        ["tests/data/test_metrics.py"],
        "average precision forgets earlier hits",
    ),
    (
        "cir_cot/data/metrics.py",
        "return total / min(len(targets), k)",
        "return total / len(targets)",
        ["tests/data/test_metrics.py"],
        "AP is divided by all targets",
    ),
    (
        "cir_cot/data/metrics.py",
        "enumerate(ranking[:k], 1)",
        "enumerate(ranking, 1)",
        ["tests/data/test_metrics.py"],
        "AP is not cut at k",
    ),
    (
        "cir_cot/data/metrics.py",
        "if len(set(ranking)) != len(ranking):",
        "if False:",
        ["tests/data/test_metrics.py"],
        "an image twice in a ranking counts twice",
    ),
    (
        "cir_cot/data/metrics.py",
        "if k < 1:",
        "if k < 0:",
        ["tests/data/test_metrics.py"],
        "k of 0 is accepted",
    ),
    (
        "cir_cot/data/metrics.py",
        "if not all(labels):",
        "if not any(labels):",
        ["tests/data/test_metrics.py"],
        "a query without target is a miss",
    ),
    # ---- cir_cot/integrations/mteb_tasks.py
    (
        "cir_cot/integrations/mteb_tasks.py",
        "flat[name] = value / 100",
        "flat[name] = value",
        ["tests/integrations/test_mteb_tasks.py"],
        "percentages are called fractions",
    ),
    (
        "cir_cot/integrations/mteb_tasks.py",
        "return normalize(vectors, dim=-1)",
        "return vectors",
        ["tests/integrations/test_mteb_tasks.py"],
        "vectors of a cosine model are not normalised",
    ),
    (
        "cir_cot/integrations/mteb_tasks.py",
        '(flat["R@10"] + flat["R@50"]) / 2',
        'flat["R@10"]',
        ["tests/integrations/test_mteb_tasks.py"],
        "FashionIQ's average is R@10",
    ),
    (
        "cir_cot/integrations/mteb_tasks.py",
        "hashlib.sha256(fingerprint(retriever).tobytes()).hexdigest()[:16]",
        '"0"',
        ["tests/integrations/test_mteb_tasks.py"],
        "results of another checkpoint are taken from mteb's cache",
    ),
    (
        "cir_cot/integrations/mteb_tasks.py",
        'if wanted != {"image", "text"} & batch.keys():',
        "if False:",
        ["tests/integrations/test_mteb_tasks.py"],
        "texts are ignored in documents",
    ),
    # ---- cir_cot/profiling/synthetic.py
    (
        "cir_cot/profiling/synthetic.py",
        "if index % 3 else self.words // 2",
        "if True else self.words // 2",
        ["tests/profiling/test_synthetic.py"],
        "rows do not differ in length",
    ),
    (
        "cir_cot/profiling/synthetic.py",
        "np.random.default_rng(index).integers",
        "np.random.default_rng(0).integers",
        ["tests/profiling/test_synthetic.py"],
        "all pictures are the same",
    ),
    (
        "cir_cot/profiling/synthetic.py",
        "self.sizes[index % len(self.sizes)]",
        "self.sizes[0]",
        ["tests/profiling/test_fullsize.py::test_noise_pairs_have_the_sizes_that_they_are_given"],
        "all pictures have one size",
    ),
    # ---- cir_cot/evaluation/results_folder.py
    (
        "cir_cot/evaluation/results_folder.py",
        "    check_results_folder(folder, (*names, *stale), overwrite)\n",
        "",
        ["tests/evaluation/test_results_folder.py::test_a_file_in_place_of_the_folder_is_one_line"],
        "a file in place of the folder is a bare error",
    ),
    (
        "cir_cot/evaluation/results_folder.py",
        "stale=stale, recognise",
        "recognise",
        [
            "tests/evaluation/test_results_folder.py::test_results_json_is_gone_when_a_measurement_stops_half_way_and_the_next_one_needs_no_flag"
        ],
        "results.json of the run before stays after a crash",
    ),
    (
        "cir_cot/evaluation/results_folder.py",
        "first.keys() == CHAIN_KEYS",
        "True",
        [
            "tests/evaluation/test_results_folder.py::test_a_folder_of_an_earlier_version_is_rewritten"
        ],
        "annotations in an old results folder count as ours",
    ),
    (
        "cir_cot/evaluation/results_folder.py",
        '            return file.read(1) == b"{"',
        "            return True",
        [
            "tests/evaluation/test_results_folder.py::test_rankings_that_are_no_archive_are_not_taken_for_ours"
        ],
        "any archive counts as rankings of ours",
    ),
    # ---- cir_cot/ownership.py
    (
        "cir_cot/ownership.py",
        "        if exists and not is_own(",
        "        if False and not is_own(",
        [
            "tests/evaluation/test_results_folder.py::test_annotations_are_not_deleted_by_a_measurement"
        ],
        "a measurement deletes annotations",
    ),
    (
        "cir_cot/ownership.py",
        "    return listed[name] is None or listed[name] == digest(path)",
        "    return True",
        [
            "tests/test_ownership.py::test_a_file_edited_since_is_refused_and_stays",
            "tests/evaluation/test_results_folder.py::test_a_measurement_replaces_its_own_files_until_somebody_changes_one",
        ],
        "an edited file is replaced",
    ),
    (
        "cir_cot/ownership.py",
        "return listed[name] is None or listed",
        "return listed",
        [
            "tests/test_ownership.py::test_a_run_that_was_stopped_can_be_repeated",
            "tests/evaluation/test_results_folder.py::test_results_json_is_gone_when_a_measurement_stops_half_way_and_the_next_one_needs_no_flag",
        ],
        "a stopped run cannot be repeated",
    ),
    (
        "cir_cot/ownership.py",
        " or path.is_symlink()\n",
        "\n",
        ["tests/test_ownership.py::test_a_link_that_leads_nowhere_is_the_users"],
        "a link that leads nowhere is replaced",
    ),
    (
        "cir_cot/ownership.py",
        "        return path.is_file() and recognise(path)",
        "        return path.is_file()",
        ["tests/test_ownership.py::test_what_another_command_wrote_is_refused"],
        "commands replace each other's files",
    ),
    (
        "cir_cot/ownership.py",
        "    listed |= dict.fromkeys((*names, *unread, *old))\n    write_manifest(folder, content)\n",
        "    listed |= dict.fromkeys((*names, *unread, *old))\n",
        ["tests/test_ownership.py::test_a_run_that_was_stopped_can_be_repeated"],
        "the list is written at the end only",
    ),
    (
        "cir_cot/ownership.py",
        "        (folder / name).unlink(missing_ok=True)\n",
        "        pass\n",
        [
            "tests/evaluation/test_results_folder.py::test_results_json_is_gone_when_a_measurement_stops_half_way_and_the_next_one_needs_no_flag"
        ],
        "nothing that an earlier measurement left is removed",
    ),
    (
        "cir_cot/ownership.py",
        "        listed.pop(name, None)\n",
        "        pass\n",
        [
            "tests/evaluation/test_results_folder.py::test_what_a_measurement_no_longer_writes_is_removed_and_not_listed"
        ],
        "files that were removed stay listed",
    ),
    (
        "cir_cot/ownership.py",
        "    # read the manifest again, since the block may have listed other files\n    content = read_manifest(folder)\n",
        "",
        ["tests/evaluation/test_results_folder.py::test_files_listed_inside_the_block_stay_listed"],
        "a report inside a study is forgotten",
    ),
    # ---- cir_cot/search/private_folder.py
    (
        "cir_cot/search/private_folder.py",
        "    finally:\n        shutil.rmtree(folder, ignore_errors=True)",
        "    finally:\n        pass",
        [
            "tests/search/test_private_folder.py::test_nobody_else_can_look_into_it_and_it_is_gone_afterwards"
        ],
        "copies stay",
    ),
    (
        "cir_cot/search/private_folder.py",
        "    remove_stale(Path(tempfile.gettempdir()), prefix)\n",
        "",
        [
            "tests/search/test_private_folder.py::test_what_a_killed_process_left_is_removed_by_the_next_and_what_is_in_use_is_kept"
        ],
        "copies of a killed process stay",
    ),
    (
        "cir_cot/search/private_folder.py",
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        [
            "tests/search/test_private_folder.py::test_what_a_killed_process_left_is_removed_by_the_next_and_what_is_in_use_is_kept"
        ],
        "folders in use are removed",
    ),
    (
        "cir_cot/search/private_folder.py",
        "(signal.SIGTERM, signal.SIGHUP)",
        "(signal.SIGTERM,)",
        ["tests/search/test_private_folder.py::test_it_is_gone_after_a_signal"],
        "copies stay when the terminal is closed",
    ),
    (
        "cir_cot/search/private_folder.py",
        "raise SystemExit(128 + number)",
        "raise SystemExit(number)",
        ["tests/search/test_private_folder.py::test_it_is_gone_after_a_signal"],
        "another exit code",
    ),
    (
        "cir_cot/search/private_folder.py",
        "(folder / LOCK).open()",
        '(folder / LOCK).open("a")',
        [
            "tests/search/test_private_folder.py::test_folders_that_are_not_known_to_be_its_own_are_kept"
        ],
        "folders without a lock are removed",
    ),
    (
        "cir_cot/search/private_folder.py",
        "'cat; rm -rf",
        "'rm -rf",
        ["tests/search/test_private_folder.py::test_a_shell_removes_it_when_the_process_is_killed"],
        "the shell removes a folder in use",
    ),
    (
        "cir_cot/search/private_folder.py",
        "rm -rf -- ",
        "true -- ",
        ["tests/search/test_private_folder.py::test_a_shell_removes_it_when_the_process_is_killed"],
        "copies of a killed process stay until the next",
    ),
    (
        "cir_cot/search/local_server.py",
        '[] if door == "22" else ["-p", door]',
        "[]",
        ["tests/search/test_demo.py::test_who_is_logged_in_over_ssh_reads_how_to_get_to_the_page"],
        "the tunnel goes to another door",
    ),
    # ---- cir_cot/processes.py
    (
        "cir_cot/processes.py",
        "SIGNALS = (signal.SIGTERM, signal.SIGHUP)",
        "SIGNALS = (signal.SIGHUP,)",
        [
            "tests/training/test_quickstart.py::test_a_signal_ends_the_trainers_with_the_quickstart[15-143]"
        ],
        "SIGTERM leaves the trainers running",
    ),
    # ---- cir_cot/prompts.py
    (
        "cir_cot/prompts.py",
        "if found := TAG.search(getattr(cot, part)):",
        "if found := None:",
        ["tests/test_prompts.py"],
        "a chain with a tag inside is written",
    ),
    (
        "cir_cot/prompts.py",
        "match = _CHAIN.fullmatch(text)",
        "match = _CHAIN.match(text)",
        ["tests/test_prompts.py"],
        "words behind a chain are dropped",
    ),
    (
        "cir_cot/prompts.py",
        "if any(not value or TAG.search(value)",
        "if any(not value",
        ["tests/test_prompts.py"],
        "a repeated part is read",
    ),
    (
        "cir_cot/prompts.py",
        "parts = {part: match[part].strip() for part in PARTS}",
        "parts = {part: match[part] for part in PARTS}",
        ["tests/test_prompts.py"],
        "a part keeps white space, an empty one passes",
    ),
    (
        "cir_cot/prompts.py",
        'return before.replace("{text}", text) + conclusion + after',
        'return (before + conclusion + after).replace("{text}", text)',
        ["tests/test_prompts.py"],
        "a conclusion's braces are filled in",
    ),
    (
        "cir_cot/prompts.py",
        "(.*?)(?:</\\1>|$)",
        "(.*?)</\\1>",
        ["tests/heads/test_decoding.py::test_what_is_written_so_far_is_read_by_part"],
        "a part that is being written is not shown",
    ),
    # ---- cir_cot/data/scoring.py
    (
        "cir_cot/data/scoring.py",
        '(metrics["R@5"] + metrics["Rsub@1"]) / 2',
        '(metrics["R@5"] + metrics["Rsub@2"]) / 2',
        ["tests/data/test_scoring.py"],
        "CIRR's average takes another subset recall",
    ),
    (
        "cir_cot/data/rankings.py",
        "for image in record.subset if image != record.reference)",
        "for image in record.subset)",
        ["tests/data/test_scoring.py"],
        "CIRR's subset keeps the reference",
    ),
    (
        "cir_cot/data/scoring.py",
        "recall_at_k(lists, first_targets, k)",
        "recall_at_k(lists, targets, k)",
        ["tests/data/test_scoring.py"],
        "CIRCO's recall counts every target",
    ),
    (
        "cir_cot/data/scoring.py",
        "map_at_k(some_lists, some_targets, 10)",
        "map_at_k(some_lists, some_targets, 5)",
        ["tests/data/test_scoring.py"],
        "mAP by aspect at another depth",
    ),
    (
        "cir_cot/data/scoring.py",
        '(average["R@10"] + average["R@50"]) / 2',
        'average["R@10"] + average["R@50"]',
        ["tests/data/test_scoring.py"],
        "FashionIQ's average is a sum",
    ),
    (
        "cir_cot/data/rankings.py",
        "for image in rankings[record.id] if image != removed]",
        "for image in rankings[record.id]]",
        ["tests/data/test_scoring.py"],
        "the reference stays in the ranking",
    ),
    (
        "cir_cot/data/rankings.py",
        'if benchmark.name != "circo":\n            check_length',
        "if False:\n            check_length",
        ["tests/data/test_scoring.py"],
        "lists that are too short are scored",
    ),
    (
        "cir_cot/data/rankings.py",
        "len(nameable) - (removed in nameable))",
        "len(nameable))",
        ["tests/data/test_scoring.py"],
        "the removed reference is demanded of a short gallery's list",
    ),
    (
        "cir_cot/data/rankings.py",
        "LARGEST_SUBSET_K = 3",
        "LARGEST_SUBSET_K = 2",
        ["tests/data/test_scoring.py"],
        "Rsub@3 of two members",
    ),
    (
        "cir_cot/data/rankings.py",
        "    if missing:\n",
        "    if False:\n",
        ["tests/data/test_scoring.py"],
        "missing queries",
    ),
    (
        "cir_cot/data/rankings.py",
        "    if unknown:\n",
        "    if False:\n",
        ["tests/data/test_scoring.py"],
        "unknown queries",
    ),
    (
        "cir_cot/data/rankings.py",
        "    if length < needed:",
        "    if length <= needed:",
        ["tests/data/test_scoring.py"],
        "a list of exactly the largest k is refused",
    ),
    (
        "cir_cot/data/rankings.py",
        "needed = min(max(benchmark.ks), available)",
        "needed = min(min(benchmark.ks), available)",
        ["tests/data/test_scoring.py"],
        "a list need only reach the smallest k",
    ),
    (
        "cir_cot/data/rankings.py",
        "if rankings.pop(key, value) != value:",
        "if rankings.pop(key, value) is None:",
        ["tests/data/test_scoring.py"],
        "CIRR's two submissions are mistaken for each other",
    ),
    (
        "cir_cot/data/benchmark.py",
        "        return str(int(image))",
        "        return image",
        ["tests/data/test_scoring.py"],
        "padded COCO ids are other ids",
    ),
    (
        "cir_cot/data/benchmark.py",
        "MAX_COCO_DIGITS = 12",
        "MAX_COCO_DIGITS = 13",
        ["tests/data/test_scoring.py"],
        "COCO ids of 13 digits",
    ),
    (
        "cir_cot/data/benchmark.py",
        "not isinstance(image, bool) and image >= 0",
        "image >= 0",
        ["tests/data/test_scoring.py"],
        "true is an image id",
    ),
    (
        "cir_cot/data/benchmark.py",
        "return self.members | self.outside",
        "return self.members",
        ["tests/data/test_scoring.py"],
        "images outside a smaller gallery are refused",
    ),
    (
        "cir_cot/data/rankings.py",
        "        if benchmark.outside:",
        "        if False:",
        ["tests/data/test_scoring.py"],
        "images outside a smaller gallery take places",
    ),
    (
        "cir_cot/data/rankings.py",
        "min(largest, available or largest)",
        "min(largest, largest)",
        ["tests/data/test_scoring.py"],
        "a full list of a small gallery counts as short",
    ),
    (
        "cir_cot/data/rankings.py",
        "        return frozenset(benchmark.candidates[record.id])\n",
        "        return benchmark.members\n",
        ["tests/data/test_scoring.py"],
        "GeneCIS ranks the whole gallery",
    ),
    # ---- cir_cot/provenance.py
    (
        "cir_cot/provenance.py",
        '        git("ls-files", "--error-unmatch", here.name)\n',
        "",
        ["tests/test_provenance.py"],
        "somebody else's commit is named",
    ),
    (
        "cir_cot/provenance.py",
        '"--porcelain", "-uno"',
        '"--porcelain"',
        ["tests/test_provenance.py"],
        "files that are not tracked make a checkout dirty",
    ),
    (
        "cir_cot/profiling/fake_head.py",
        "bits.view(torch.bfloat16).float()",
        "bits.float()",
        [
            "tests/profiling/test_plan.py::test_pictures_without_pixels_have_the_same_grids_and_stay_apart"
        ],
        "different pictures count as one, so that a plan encodes fewer",
    ),
    (
        "cir_cot/heads/__init__.py",
        "    if merge and isinstance(head, QwenHead) and not _quantised(head):",
        "    if False:",
        [
            "tests/contract/test_retriever_contract.py::test_a_retriever_that_only_reads_is_loaded_merged"
        ],
        "an adapter stays apart where it was to be merged",
    ),
    # ---- cir_cot/models/qwen_vocabulary.py
    (
        "cir_cot/models/qwen_vocabulary.py",
        '    "<|quad_start|>",\n    "<|quad_end|>",\n',
        "",
        ["tests/models/test_qwen_vocabulary.py::test_the_published_ids"],
        "the image token has another id",
    ),
    # ---- cir_cot/profiling/qwen_sizes.py
    (
        "cir_cot/profiling/qwen_sizes.py",
        '"fullatt_block_indexes": [layers - 1]}',
        '"fullatt_block_indexes": [layers]}',
        ["tests/models/test_real_configs.py"],
        "no block of a small tower sees the whole picture",
    ),
    # ---- cir_cot/search/qdrant_index.py
    (
        "cir_cot/search/qdrant_index.py",
        "        if foreign:",
        "        if False:",
        ["tests/search/test_faiss_index.py::test_what_another_index_put_into_a_collection_stays"],
        "another index's pictures are removed",
    ),
    # ---- cir_cot/evaluation/ranking.py
    (
        "cir_cot/evaluation/ranking.py",
        "queries[start : start + BLOCK].numpy()",
        "queries[:BLOCK].numpy()",
        [
            "tests/evaluation/test_ranking.py",
            "tests/evaluation/test_evaluate.py::test_best_is_a_full_sort_by_score_then_wrong_before_right",
            "tests/evaluation/test_evaluate.py::test_a_target_that_ties_with_more_images_than_the_list_holds_is_left_out",
            "tests/evaluation/test_evaluate.py::test_the_first_target_comes_last_of_all_among_equals",
        ],
        "every block ranks the first 256 queries",
    ),
    (
        "cir_cot/evaluation/ranking.py",
        "if benchmark.remove_reference else -1",
        "if False else -1",
        [
            "tests/evaluation/test_ranking.py",
            "tests/evaluation/test_evaluate.py::test_best_is_a_full_sort_by_score_then_wrong_before_right",
            "tests/evaluation/test_evaluate.py::test_a_target_that_ties_with_more_images_than_the_list_holds_is_left_out",
            "tests/evaluation/test_evaluate.py::test_the_first_target_comes_last_of_all_among_equals",
        ],
        "the reference is ranked where the protocol removes it",
    ),
    (
        "cir_cot/evaluation/ranking.py",
        "for name in right if name in column]",
        "for name in reversed(right) if name in column]",
        [
            "tests/evaluation/test_ranking.py",
            "tests/evaluation/test_evaluate.py::test_best_is_a_full_sort_by_score_then_wrong_before_right",
            "tests/evaluation/test_evaluate.py::test_a_target_that_ties_with_more_images_than_the_list_holds_is_left_out",
            "tests/evaluation/test_evaluate.py::test_the_first_target_comes_last_of_all_among_equals",
        ],
        "ties favour the first target",
    ),
    (
        "cir_cot/evaluation/ranking.py",
        "top_columns(row, members[members != out], targets, top)",
        "top_columns(row, members, targets, top)",
        [
            "tests/evaluation/test_ranking.py",
            "tests/evaluation/test_evaluate.py::test_best_is_a_full_sort_by_score_then_wrong_before_right",
            "tests/evaluation/test_evaluate.py::test_a_target_that_ties_with_more_images_than_the_list_holds_is_left_out",
            "tests/evaluation/test_evaluate.py::test_the_first_target_comes_last_of_all_among_equals",
        ],
        "the reference is ranked within the subset",
    ),
    (
        "cir_cot/evaluation/ranking.py",
        "(exact @ part.T).astype(np.float32)",
        "(exact.astype(np.float32) @ part.T.astype(np.float32))",
        ["tests/evaluation/test_evaluate.py::test_equal_pictures_score_equal_in_every_column"],
        "products are summed in float32",
    ),
    (
        "cir_cot/evaluation/ranking.py",
        "key=lambda name: -weights[name])",
        "key=lambda name: weights[name])",
        [
            "tests/evaluation/test_ranking.py",
            "tests/evaluation/test_evaluate.py::test_best_is_a_full_sort_by_score_then_wrong_before_right",
            "tests/evaluation/test_evaluate.py::test_a_target_that_ties_with_more_images_than_the_list_holds_is_left_out",
            "tests/evaluation/test_evaluate.py::test_the_first_target_comes_last_of_all_among_equals",
        ],
        "ties favour the most valued answer",
    ),
    (
        "cir_cot/evaluation/ranking.py",
        "if weights[name] > 0]",
        "if weights[name] >= 0]",
        [
            "tests/evaluation/test_ranking.py",
            "tests/evaluation/test_evaluate.py::test_best_is_a_full_sort_by_score_then_wrong_before_right",
            "tests/evaluation/test_evaluate.py::test_a_target_that_ties_with_more_images_than_the_list_holds_is_left_out",
            "tests/evaluation/test_evaluate.py::test_the_first_target_comes_last_of_all_among_equals",
        ],
        "an answer of no value counts as right in ties",
    ),
    (
        "cir_cot/evaluation/ranking.py",
        "right[near == target] = len(targets) - place",
        "right[near == target] = place",
        [
            "tests/evaluation/test_ranking.py",
            "tests/evaluation/test_evaluate.py::test_best_is_a_full_sort_by_score_then_wrong_before_right",
            "tests/evaluation/test_evaluate.py::test_a_target_that_ties_with_more_images_than_the_list_holds_is_left_out",
            "tests/evaluation/test_evaluate.py::test_the_first_target_comes_last_of_all_among_equals",
        ],
        "the first target is not last among equals",
    ),
    (
        "cir_cot/evaluation/ranking.py",
        "np.lexsort((near, right, -scores[near]))",
        "np.lexsort((near, -right, -scores[near]))",
        [
            "tests/evaluation/test_ranking.py",
            "tests/evaluation/test_evaluate.py::test_best_is_a_full_sort_by_score_then_wrong_before_right",
            "tests/evaluation/test_evaluate.py::test_a_target_that_ties_with_more_images_than_the_list_holds_is_left_out",
            "tests/evaluation/test_evaluate.py::test_the_first_target_comes_last_of_all_among_equals",
        ],
        "ties are decided for the model",
    ),
    (
        "cir_cot/evaluation/ranking.py",
        "values >= lowest",
        "values > lowest",
        [
            "tests/evaluation/test_ranking.py",
            "tests/evaluation/test_evaluate.py::test_best_is_a_full_sort_by_score_then_wrong_before_right",
            "tests/evaluation/test_evaluate.py::test_a_target_that_ties_with_more_images_than_the_list_holds_is_left_out",
            "tests/evaluation/test_evaluate.py::test_the_first_target_comes_last_of_all_among_equals",
        ],
        "images that tie with the last place are dropped",
    ),
    # ---- cir_cot/evaluation/readings.py
    (
        "cir_cot/evaluation/readings.py",
        "GREY = (127, 127, 127)",
        "GREY = (0, 0, 0)",
        ["tests/evaluation/test_evaluate.py::test_text_only_sees_grey_of_the_reference_size"],
        "text_only sees black",
    ),
    (
        "cir_cot/evaluation/readings.py",
        "partial(encode_oracle, chain_reader(retriever, reading))",
        "partial(encode_oracle, retriever)",
        ["tests/evaluation/test_evaluate.py::test_a_reading_that_the_retriever_lacks_is_refused"],
        "the oracle of a head without chains",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        "chain is not None and not flags[name] for",
        "chain is not None for",
        [
            "tests/evaluation/test_evaluate.py::test_chain_metrics_in_closed_form",
            "tests/evaluation/test_evaluate.py::test_lent_chains_come_from_queries_with_other_answers",
            "tests/evaluation/test_evaluate.py::test_a_share_of_nothing_is_nothing",
        ],
        "a forced chain counts as valid",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        "getattr(chain, part).split() == getattr(truth, part).split()",
        "getattr(chain, part) == getattr(truth, part)",
        [
            "tests/evaluation/test_evaluate.py::test_chain_metrics_in_closed_form",
            "tests/evaluation/test_evaluate.py::test_lent_chains_come_from_queries_with_other_answers",
            "tests/evaluation/test_evaluate.py::test_a_share_of_nothing_is_nothing",
        ],
        "white space decides exactness",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        "if record.cot is not None}\n",
        "if record.cot}\n",
        [
            "tests/evaluation/test_evaluate.py::test_chain_metrics_in_closed_form",
            "tests/evaluation/test_evaluate.py::test_lent_chains_come_from_queries_with_other_answers",
            "tests/evaluation/test_evaluate.py::test_a_share_of_nothing_is_nothing",
        ],
        "the same",
        "the records with a chain are the annotated ones",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        "100 * sum(answers) / max(len(answers), 1)",
        "100 * sum(answers) / len(answers)",
        [
            "tests/evaluation/test_evaluate.py::test_chain_metrics_in_closed_form",
            "tests/evaluation/test_evaluate.py::test_lent_chains_come_from_queries_with_other_answers",
            "tests/evaluation/test_evaluate.py::test_a_share_of_nothing_is_nothing",
        ],
        "a share of none divides by zero",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        "apart = not set(donor.targets) & set(record.targets)",
        "apart = True",
        [
            "tests/evaluation/test_evaluate.py::test_chain_metrics_in_closed_form",
            "tests/evaluation/test_evaluate.py::test_lent_chains_come_from_queries_with_other_answers",
            "tests/evaluation/test_evaluate.py::test_a_share_of_nothing_is_nothing",
        ],
        "a chain is lent by a query of the same answer",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        "own is None or donor.cot.conclusion != own.conclusion",
        "True",
        [
            "tests/evaluation/test_evaluate.py::test_chain_metrics_in_closed_form",
            "tests/evaluation/test_evaluate.py::test_lent_chains_come_from_queries_with_other_answers",
            "tests/evaluation/test_evaluate.py::test_a_share_of_nothing_is_nothing",
        ],
        "a chain is lent that says the same",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        "if value < threshold}",
        "if value <= threshold}",
        [
            "tests/evaluation/test_calibrate.py::test_the_curve_runs_from_no_chain_to_a_chain_for_each_and_mixes_query_by_query"
        ],
        "a chain is written at the threshold itself",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        "(full if name in written else fast)[name]",
        "(fast if name in written else full)[name]",
        [
            "tests/evaluation/test_calibrate.py::test_the_curve_runs_from_no_chain_to_a_chain_for_each_and_mixes_query_by_query"
        ],
        "the curve swaps the two readings",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        "sum(tokens[name] for name in written) / count",
        "sum(tokens[name] for name in written) / max(1, len(written))",
        [
            "tests/evaluation/test_calibrate.py::test_the_curve_runs_from_no_chain_to_a_chain_for_each_and_mixes_query_by_query"
        ],
        "tokens a chain and not a query",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        ">= best - tolerance]",
        ">= best + tolerance]",
        [
            "tests/evaluation/test_calibrate.py::test_the_curve_runs_from_no_chain_to_a_chain_for_each_and_mixes_query_by_query"
        ],
        "the tolerance has the wrong sign",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        'key=lambda point: point["tokens"])',
        'key=lambda point: -point["tokens"])',
        [
            "tests/evaluation/test_calibrate.py::test_the_curve_runs_from_no_chain_to_a_chain_for_each_and_mixes_query_by_query"
        ],
        "the dearest point is chosen",
    ),
    (
        "cir_cot/evaluation/chain_quality.py",
        "values[-1] + 1e-6}",
        "values[-1]}",
        [
            "tests/evaluation/test_calibrate.py::test_the_curve_runs_from_no_chain_to_a_chain_for_each_and_mixes_query_by_query"
        ],
        "no threshold writes a chain for each query",
    ),
    # ---- cir_cot/training/arguments.py
    (
        "cir_cot/training/arguments.py",
        "            if isinstance(value, float) and not math.isfinite(value):",
        "            if False:",
        ["tests/training/test_arguments.py::test_a_hostile_file_is_one_short_line[infinite]"],
        "a learning rate of infinity trains",
    ),
    (
        "cir_cot/training/arguments.py",
        "not 0 <= value < 2**32",
        "not 0 <= value <= 2**32",
        [
            "tests/training/test_arguments.py::test_a_hostile_file_is_one_short_line[a seed beyond numpy]"
        ],
        "a seed that numpy refuses is a traceback",
    ),
    (
        "cir_cot/training/arguments.py",
        "            if getattr(self, name) < 1:",
        "            if getattr(self, name) < 0:",
        ["tests/training/test_arguments.py::test_a_hostile_file_is_one_short_line[batch of none]"],
        "a batch of no rows divides by zero",
    ),
    # ---- cir_cot/records.py
    (
        "cir_cot/records.py",
        "    if len(text) > longest:",
        "    if len(text) >= longest:",
        ["tests/test_records.py::test_a_text_of_the_greatest_length_is_read"],
        "a text of exactly the limit is refused",
    ),
    (
        "cir_cot/records.py",
        "    if len(text) > longest:",
        "    if False:",
        ["tests/test_records.py::test_the_first_bad_line_is_named"],
        "texts of any length are read",
    ),
    (
        "cir_cot/records.py",
        '    if "\\0" in text:',
        "    if False:",
        ["tests/test_records.py::test_the_first_bad_line_is_named"],
        "NUL is read as text",
    ),
    (
        "cir_cot/records.py",
        "    except UnicodeEncodeError as error:\n",
        "    except ZeroDivisionError as error:\n",
        [
            "tests/search/test_search.py::test_texts_that_are_too_long_or_none_are_refused_before_they_are_encoded"
        ],
        "surrogates of the command line are a traceback",
    ),
    (
        "cir_cot/records.py",
        "    if not blank and not value.strip():",
        "    if not blank and not value:",
        ["tests/test_records.py::test_the_first_bad_line_is_named"],
        "an id of white space is read",
    ),
    (
        "cir_cot/records.py",
        "    if len(set(value)) != len(value):",
        "    if False:",
        ["tests/test_records.py::test_the_first_bad_line_is_named"],
        "an image may be a target twice",
    ),
    (
        "cir_cot/data/chain_files.py",
        "        if len(found) != 1:",
        "        if not found:",
        ["tests/data/test_chain_files.py::test_a_pair_of_several_records_is_refused"],
        "a chain goes to the first of several records",
    ),
    (
        "cir_cot/records.py",
        "        if record.id in lines:",
        "        if False:",
        ["tests/test_records.py::test_the_first_bad_line_is_named"],
        "an id is used twice",
    ),
    # ---- cir_cot/evaluation/encoded_rows.py
    (
        "cir_cot/evaluation/encoded_rows.py",
        'os.truncate(self.path, text.rfind(b"\\n") + 1)',
        "pass",
        ["tests/evaluation/test_encoded_rows.py::test_an_incomplete_last_line_is_encoded_again"],
        "a truncated line swallows the next one",
    ),
    (
        "cir_cot/evaluation/encoded_rows.py",
        '        if stored["facts"].get(key) != value:',
        "        if False:",
        ["tests/evaluation/test_encoded_rows.py::test_rows_of_another_run_are_refused"],
        "rows of another run are mixed in",
    ),
    (
        "cir_cot/evaluation/encode.py",
        "    wanted = list(names) if rows is None else rows.missing(names)",
        "    wanted = list(names)",
        ["tests/evaluation/test_encoded_rows.py::test_a_killed_evaluation_goes_on_where_it_was"],
        "a continued evaluation encodes everything again",
    ),
    (
        "cir_cot/heads/targets.py",
        "            if padded <= token_budget and len(batch) < batch_size:",
        "            if len(batch) < batch_size:",
        ["tests/contract/test_retriever_contract.py::test_a_large_picture_pads_no_small_ones"],
        "a batch is padded beyond the budget",
    ),
    (
        "cir_cot/retriever.py",
        "        places[row] = place",
        "        places[place] = row",
        ["tests/contract/test_retriever_contract.py::test_a_large_picture_pads_no_small_ones"],
        "rows come back in the order of their batches",
    ),
    (
        "cir_cot/fingerprint.py",
        "    return 4 * ROUNDING[dtype] * (2 * depth) ** 0.5",
        "    return 0.4 * ROUNDING[dtype] * (2 * depth) ** 0.5",
        ["tests/test_fingerprint.py"],
        "a good deep index is refused",
    ),
    (
        "cir_cot/training/run.py",
        "            parameter.data = parameter.data.float()",
        "            pass",
        ["tests/training/test_sft.py::test_full_fine_tuning_in_bfloat16_moves_every_weight"],
        "full fine-tuning moves few bfloat16 weights",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "[:-limit] if number != best]",
        "[:-limit]]",
        ["tests/training/test_validation.py::test_the_best_checkpoint_is_kept_and_loaded"],
        "rotation deletes the best checkpoint",
    ),
    (
        "cir_cot/training/validation.py",
        "        self.accelerator.unwrap_model(self.model).load_weights(folder)",
        "        pass",
        ["tests/training/test_validation.py::test_the_best_checkpoint_is_kept_and_loaded"],
        "the last weights are saved as the best",
    ),
    (
        "cir_cot/training/validation.py",
        "                    limit=validation.queries,",
        "                    limit=None,",
        [
            "tests/training/test_validation.py::test_evaluation_changes_no_weight_and_is_what_evaluate_measures"
        ],
        "the sample of queries is ignored",
    ),
    (
        "cir_cot/models/vision_attention.py",
        "    whole = torch.cat(parts) if inverse is None else torch.cat(parts)[inverse]",
        "    whole = torch.cat(parts)",
        ["tests/models/test_vision_attention.py"],
        "patches come back in the order of window lengths",
    ),
    (
        "cir_cot/profiling/plan.py",
        "        activations=max(0, meter.peak - own) + kept,",
        "        activations=max(0, meter.peak) + kept,",
        ["tests/profiling/test_plan.py"],
        "gradients count twice",
    ),
    (
        "cir_cot/profiling/plan.py",
        "        operations=round(meter.operations * scale),",
        "        operations=meter.operations,",
        ["tests/profiling/test_plan.py::test_a_cached_step_needs_what_was_planned"],
        "rows beyond the measured ones cost nothing",
    ),
    (
        "cir_cot/profiling/plan.py",
        '    buckets = step.gradients if sharding == "ddp" and gpus > 1 else 0',
        "    buckets = 0",
        ["tests/profiling/test_plan.py::test_what_processes_share"],
        "DDP's buckets are forgotten",
    ),
    # ---- cir_cot/engines
    (
        "cir_cot/engines/chat_server.py",
        "    if not is_count(counted) or counted != prompt_tokens:",
        "    if not is_count(counted):",
        ["tests/engines/test_served.py::test_a_server_of_something_else_is_refused"],
        "a prompt of another length is accepted",
    ),
    (
        "cir_cot/engines/chat_server.py",
        "    if stopped != ret_id:",
        "    if False:",
        ["tests/engines/test_served.py::test_a_server_of_something_else_is_refused"],
        "an answer that ends at another token is accepted",
    ),
    (
        "cir_cot/engines/served.py",
        "texts = [without_special_tokens(text, self._specials) for text in texts]",
        "texts = list(texts)",
        ["tests/engines/test_served.py::test_the_prompt_holds_no_special_token_of_the_user"],
        "users write special tokens into an engine's prompt",
    ),
    (
        "cir_cot/engines/states.py",
        "    if not cosine >= least:",
        "    if False:",
        ["tests/engines/test_served.py::test_states_from_before_the_final_norm_are_refused"],
        "states from before the final norm are accepted",
    ),
    (
        "cir_cot/engines/served.py",
        'or self.local.readout == "before_ret"',
        "or True",
        ["tests/engines/test_served.py::test_chains_and_vectors_are_those_of_embed_with"],
        "the state before the retrieval token is taken for the one at it",
    ),
    # ---- cir_cot/chains/openai_servers.py
    (
        "cir_cot/chains/openai_servers.py",
        'if failure.kind == "retryable" or sent > replica.failed_at:',
        "if True:",
        [
            "tests/chains/test_teacher.py::test_requests_that_find_no_server_at_the_same_time_are_one_failure"
        ],
        "sixty requests to a dead server make it rest for a minute",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        "replica.rest_until = min(replica.rest_until, max(ends, time.monotonic() + LAST_REST))",
        "pass",
        ["tests/chains/test_teacher.py::test_no_rest_goes_beyond_the_time_at_which_the_job_ends"],
        "the ten seconds' stop waits for a rest of a minute",
    ),
    (
        "cir_cot/chains/openai_client.py",
        "connect=min(timeout, CONNECT)",
        "connect=timeout",
        ["tests/chains/test_teacher.py::test_a_host_that_answers_nothing_is_left_after_seconds"],
        "rows wait two minutes for a host that is off",
    ),
    (
        "cir_cot/chains/openai_client.py",
        "        trust_env=False,",
        "        trust_env=True,",
        ["tests/chains/test_teacher.py::test_the_environment_adds_no_header_and_no_proxy"],
        "key and pictures go through HTTP_PROXY",
    ),
    (
        "cir_cot/chains/openai_client.py",
        "        proxy=proxy,\n",
        "",
        ["tests/chains/test_teacher.py::test_a_proxy_that_is_named_is_used"],
        "--proxy does nothing",
    ),
    (
        "cir_cot/chains/openai_client.py",
        "        follow_redirects=False,",
        "        follow_redirects=True,",
        ["tests/chains/test_teacher.py::test_a_redirect_takes_no_picture_to_another_server"],
        "a redirect takes pictures elsewhere",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        'self.redact(" ".join(error.response.text[:QUOTED].split()))[:SHOWN]',
        '" ".join(error.response.text[:QUOTED].split())[:SHOWN]',
        ["tests/chains/test_teacher.py::test_no_half_of_a_key_is_left_where_an_error_is_cut"],
        "half a key is left in a refusal",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        "min(failure.after, MAX_REST)",
        "failure.after",
        [
            "tests/chains/test_teacher.py::test_no_server_is_believed_that_asks_for_more_than_five_minutes"
        ],
        "MAX_REST",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        "min(MAX_REST / 5, ",
        "min(MAX_REST * 5, ",
        ["tests/chains/test_teacher.py::test_the_back_off_doubles_up_to_a_minute"],
        "the longest back-off",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        " in (401, 403, 404) and not self.answered:",
        " in (401, 403, 404):",
        [
            "tests/chains/test_teacher.py::test_a_refused_key_after_the_first_answer_is_that_row_alone"
        ],
        "not answered",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        " or busy > MAX_BUSY_REPLIES",
        "",
        [
            "tests/chains/test_teacher.py::test_every_request_ends_and_says_why[500]",
            "tests/chains/test_teacher.py::test_a_busy_row_is_given_up_after_forty_refusals",
        ],
        "a row waits for a busy server for ever",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        " or busy > MAX_BUSY_REPLIES",
        " or busy >= MAX_BUSY_REPLIES",
        ["tests/chains/test_teacher.py::test_a_busy_row_is_given_up_after_forty_refusals"],
        "BUSY",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        " and not probed:",
        ":",
        ["tests/chains/test_teacher.py::test_one_call_at_a_time_tries_a_dead_replica"],
        "single probes of a dead replica",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        "replica.failures >= FAILURES_BEFORE_REST",
        "replica.failures > FAILURES_BEFORE_REST",
        [
            "tests/chains/test_teacher.py::test_a_replica_rests_from_its_third_failure_in_a_row_where_another_works"
        ],
        "SICK",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        "len(self.replicas) > 1 and",
        "True and",
        [
            "tests/chains/test_teacher.py::test_a_replica_rests_from_its_third_failure_in_a_row_where_another_works"
        ],
        "the only server rests",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        "self.patience if self.answered else self.startup",
        "self.startup",
        ["tests/chains/test_teacher.py::test_the_job_ends_when_all_servers_are_gone_for_too_long"],
        "a restart of the server ends the job",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        "gone = all(one.unreachable for one",
        "gone = any(one.unreachable for one",
        ["tests/chains/test_teacher.py::test_the_job_ends_when_all_servers_are_gone_for_too_long"],
        "one dead server ends the job",
    ),
    (
        "cir_cot/chains/openai_servers.py",
        'text.replace(self.key, "[key]")',
        "text",
        ["tests/chains/test_teacher.py::test_the_key_goes_to_the_server_and_nowhere_else"],
        "a server's echo of the key is kept",
    ),
    (
        "cir_cot/chains/openai_client.py",
        "parts.port != 0 and ",
        "",
        ["tests/chains/test_teacher.py::test_an_address_that_is_none_is_refused"],
        "a port that is none is no error until it is used",
    ),
    (
        "cir_cot/chains/openai_client.py",
        "    key = key.strip()\n",
        "",
        ["tests/chains/test_teacher.py::test_a_key_that_no_header_holds_is_refused_and_not_shown"],
        "a key with a line end is refused",
    ),
    # ---- cir_cot/evaluation/report.py
    (
        "cir_cot/evaluation/samples.py",
        'return "found" if place(result, record) == 1 else "missed"',
        'return "found" if place(result, record) else "missed"',
        ["tests/evaluation/test_report.py"],
        "any place counts as found first",
    ),
    (
        "cir_cot/evaluation/samples.py",
        "enumerate(ranking, 1) if name in record.targets",
        "enumerate(ranking) if name in record.targets",
        ["tests/evaluation/test_report.py"],
        "ranks start at 0",
    ),
    (
        "cir_cot/evaluation/samples.py",
        "if total[k]]",
        "if shown[k]]",
        ["tests/evaluation/test_report.py"],
        "kinds of queries of which none is shown are left out",
    ),
    (
        "cir_cot/evaluation/samples.py",
        "elif same_part(chain, record.cot, part):",
        "elif True:",
        ["tests/evaluation/test_report.py"],
        "the annotated part is not shown beside a wrong one",
    ),
    # ---- cir_cot/evaluation/samples.py, filters and pictures of cir_cot/webpage.py
    (
        "cir_cot/evaluation/samples.py",
        "missing = [index for index in pool if index not in kept]",
        "missing = list(pool)",
        ["tests/evaluation/test_report_queries.py"],
        "a query that is drawn counts as missing in its group",
    ),
    (
        "cir_cot/evaluation/samples.py",
        "else (count + 1) // 2",
        "else count",
        ["tests/evaluation/test_report_queries.py"],
        "as many of each group as of each outcome are drawn",
    ),
    (
        "cir_cot/evaluation/samples.py",
        '(how, other) == ("found", "missed")',
        '(how, other) == ("found", "found")',
        ["tests/evaluation/test_report_queries.py"],
        "queries that both readings find count as lost",
    ),
    (
        "cir_cot/evaluation/samples.py",
        "if other.name == result.name and other is not result:",
        "if other is not result:",
        ["tests/evaluation/test_report_queries.py"],
        "readings of another set are compared",
    ),
    (
        "cir_cot/evaluation/samples.py",
        '        elif how == "missed":',
        '        elif how != "missed":',
        ["tests/evaluation/test_report_queries.py"],
        "found queries count as missed with the right chain",
    ),
    (
        "cir_cot/evaluation/samples.py",
        "if written and chain is None and not result.routing:",
        "if chain is None and not result.routing:",
        ["tests/evaluation/test_report_queries.py"],
        "a reading without chains has no valid chain",
    ),
    (
        "cir_cot/evaluation/samples.py",
        "if max(len(words), len(others)) > MAX_WORDS:",
        "if False:",
        ["tests/evaluation/test_report_queries.py"],
        "long sections are compared word by word",
    ),
    (
        "cir_cot/evaluation/samples.py",
        '            pieces.append((" ".join(words[end:start]), True))',
        '            pieces.append((" ".join(words[end:start]), False))',
        ["tests/evaluation/test_report_queries.py"],
        "no word is marked",
    ),
    (
        "cir_cot/webpage.py",
        'checked = "" if number else " checked"',
        'checked = " checked" if number else ""',
        ["tests/test_webpage.py"],
        "a report shows no query before a filter is chosen",
    ),
    (
        "cir_cot/webpage.py",
        'f"f{index + 1}" for index in shown_by',
        'f"f{index}" for index in shown_by',
        ["tests/test_webpage.py"],
        "filters show the queries of their neighbours",
    ),
    (
        "cir_cot/webpage.py",
        "image = thumbnail(picture, alt, LARGE)",
        "image = thumbnail(picture, alt)",
        ["tests/test_webpage.py"],
        "an enlarged picture has no more detail",
    ),
    # ---- cir_cot/evaluation/plot.py, report_charts.py
    (
        "cir_cot/evaluation/report_charts.py",
        "if rank is not None and rank <= k]",
        "if rank is not None and rank < k]",
        ["tests/evaluation/test_report_charts.py"],
        "a curve lags one picture behind its recalls",
    ),
    (
        "cir_cot/evaluation/report_charts.py",
        "and low <= rank <= high]",
        "and low < rank <= high]",
        ["tests/evaluation/test_report_charts.py"],
        "a rank between two groups is in none",
    ),
    (
        "cir_cot/evaluation/report_charts.py",
        "if not model or not path.is_file():",
        "if not path.is_file():",
        ["tests/evaluation/test_report_charts.py"],
        "a result without a model takes the curve of the working folder",
    ),
    (
        "cir_cot/evaluation/report_charts.py",
        "        except InputError:",
        "        except KeyError:",
        ["tests/evaluation/test_report_charts.py"],
        "a broken metrics.json costs the report",
    ),
    (
        "cir_cot/evaluation/report_charts.py",
        "and not isinstance(value, bool) and",
        "and",
        ["tests/evaluation/test_report_charts.py"],
        "true is drawn as 1",
    ),
    (
        "cir_cot/evaluation/report_charts.py",
        " and abs(value) < 1e15",
        "",
        ["tests/evaluation/test_report_charts.py"],
        "infinity is drawn",
    ),
    (
        "cir_cot/evaluation/plot.py",
        "return math.log(value / self.low) / math.log(self.high / self.low)",
        "return (value - self.low) / (self.high - self.low)",
        ["tests/evaluation/test_report_charts.py"],
        "a logarithmic axis is linear",
    ),
    (
        "cir_cot/evaluation/plot.py",
        "highest = max(1, ",
        "highest = max(0, ",
        ["tests/evaluation/test_report_charts.py"],
        "a histogram of nothing divides by zero",
    ),
    (
        "cir_cot/evaluation/plot.py",
        "    if low == high:",
        "    if low > high:",
        ["tests/evaluation/test_report_charts.py"],
        "a constant series has no axis",
    ),
    # ---- cir_cot/training/refusals.py
    (
        "cir_cot/training/refusals.py",
        "if getattr(args, name):",
        "if not getattr(args, name):",
        ["tests/training/test_refusals.py"],
        "what has no effect is taken, and its default refused",
    ),
    (
        "cir_cot/training/refusals.py",
        "if value < least:",
        "if value <= least:",
        ["tests/training/test_refusals.py"],
        "a learning rate of 0 is refused",
    ),
    (
        "cir_cot/training/refusals.py",
        "if not 0 <= value < 1:",
        "if not 0 <= value <= 1:",
        ["tests/training/test_refusals.py"],
        "a decay of 1 is taken",
    ),
    (
        "cir_cot/training/refusals.py",
        "if args.max_steps <= 0 and args.num_train_epochs <= 0:",
        "if args.num_train_epochs <= 0:",
        ["tests/training/test_refusals.py"],
        "no epochs are refused where steps are given",
    ),
    (
        "cir_cot/training/refusals.py",
        'args.save_strategy == "best" and args.metric_for_best_model is None',
        'args.save_strategy == "best"',
        ["tests/training/test_refusals.py"],
        "save_strategy best is refused altogether",
    ),
    (
        "cir_cot/training/refusals.py",
        "if name not in (*installed, *UNLISTED):",
        "if False:",
        ["tests/training/test_refusals.py"],
        "an unknown tracker is taken",
    ),
    (
        "cir_cot/training/refusals.py",
        'if isinstance(error, ImportError) or "lomo" not in optimizer:',
        "if isinstance(error, ImportError):",
        ["tests/training/test_refusals.py"],
        "bad arguments of an optimizer are taken",
    ),
    # ---- cir_cot/models/resizing.py
    (
        "cir_cot/models/resizing.py",
        "return max(side, found[0]), max(side, found[1])",
        "return found",
        [
            "tests/models/test_resizing.py::test_the_thinnest_picture_keeps_a_visual_token_on_its_short_side"
        ],
        "a thin picture gets a side of 0",
    ),
    (
        "cir_cot/models/resizing.py",
        "min_pixels = min(max_pixels,",
        "min_pixels = max(max_pixels,",
        ["tests/models/test_resizing.py::test_the_sides_are_whole_visual_tokens_within_the_bounds"],
        "a bound below 4 visual tokens is an assertion error",
    ),
    (
        "cir_cot/models/resizing.py",
        '"max_pixels": max(high, MAX_RATIO * token_side(images) ** 2)',
        '"max_pixels": high',
        [
            "tests/models/test_resizing.py::test_the_thinnest_picture_keeps_a_visual_token_on_its_short_side"
        ],
        "a thin picture breaks a local teacher with a small bound",
    ),
    (
        "cir_cot/models/resizing.py",
        '"min_pixels": low',
        '"min_pixels": 1',
        [
            "tests/models/test_resizing.py::test_a_picture_of_a_message_has_the_sides_that_the_processor_gives_it"
        ],
        "small pictures are resized twice",
    ),
    (
        "cir_cot/models/resizing.py",
        "return images.patch_size * merge if merge else TOKEN",
        "return TOKEN",
        ["tests/models/test_resizing.py::test_a_size_is_the_grid_of_the_processor"],
        "Qwen3-VL's patches are taken for Qwen2.5-VL's",
    ),
    (
        "cir_cot/models/resizing.py",
        "return bounded != smart_size",
        "return bounded == smart_size",
        [
            "tests/models/test_resizing.py::test_a_picture_is_shrunk_only_where_the_bound_makes_it_smaller"
        ],
        "pictures within the bound count as made smaller",
    ),
    (
        "cir_cot/models/resizing.py",
        "side, 1, 2**62)",
        "side, 1, max_pixels)",
        [
            "tests/models/test_resizing.py::test_a_picture_is_shrunk_only_where_the_bound_makes_it_smaller"
        ],
        "no picture counts as made smaller",
    ),
    # ---- cir_cot/evaluation/results.py
    (
        "cir_cot/evaluation/results.py",
        "mtime=0))",
        "))",
        ["tests/evaluation/test_evaluate.py::test_saving_again_leaves_nothing_of_the_earlier_run"],
        "the same rankings give other bytes",
    ),
    (
        "cir_cot/data/benchmark.py",
        "same = values.count(first) == len(values)",
        "same = True",
        ["tests/evaluation/test_evaluate.py::test_saved_rankings_score_to_the_same_numbers"],
        "the protocol of several categories is that of the first",
    ),
    # ---- cir_cot/training/checkpoints.py
    (
        "cir_cot/training/checkpoints.py",
        '    for path in (*written.rglob("*"), written):\n        sync(path)\n',
        "",
        [
            "tests/training/test_checkpoints.py::test_a_checkpoint_reaches_the_disk_before_its_marker_and_the_marker_before_its_name"
        ],
        "a checkpoint is marked complete before its files are on the disk",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "        sync(written)\n    if place",
        "        pass\n    if place",
        [
            "tests/training/test_checkpoints.py::test_a_checkpoint_reaches_the_disk_before_its_marker_and_the_marker_before_its_name"
        ],
        "a checkpoint is named before its marker is on the disk",
        "write_text_atomic has synchronised the folder after writing the marker",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "    written.rename(place)\n    sync(run)\n",
        "    written.rename(place)\n",
        [
            "tests/training/test_checkpoints.py::test_a_checkpoint_reaches_the_disk_before_its_marker_and_the_marker_before_its_name"
        ],
        "older checkpoints go before the new one's name is on the disk",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "        folder.rename(aside / folder.name)\n        sync(run)\n        shutil.rmtree(aside)",
        "        shutil.rmtree(folder)",
        [
            "tests/training/test_checkpoints.py::test_a_kill_at_any_moment_of_rotation_leaves_no_hollow_checkpoint_under_its_name"
        ],
        "a kill in rotation leaves a hollow folder under a checkpoint's name",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "        folder.rename(aside / folder.name)\n        sync(run)\n",
        "        folder.rename(aside / folder.name)\n",
        [
            "tests/training/test_checkpoints.py::test_a_checkpoint_loses_its_name_on_the_disk_before_its_first_file"
        ],
        "files of an old checkpoint go before its name has",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "key=lambda number: (number <= step, number)",
        "key=lambda number: number",
        [
            "tests/training/test_checkpoints.py::test_rotation_keeps_what_was_saved_just_now_and_leaves_the_abandoned_course_first"
        ],
        "rotation deletes the save of just now when a run went back to an older checkpoint",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "key=lambda number: (number <= step, number)",
        "key=lambda number: found[number].stat().st_mtime",
        [
            "tests/training/test_checkpoints.py::test_a_clock_set_back_does_not_delete_the_newest_save"
        ],
        "rotation by time deletes the newest save",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "    if limit is None or limit < 1:\n",
        "    if limit is None:\n",
        [
            "tests/training/test_checkpoints.py::test_rotation_keeps_what_was_saved_just_now_and_leaves_the_abandoned_course_first"
        ],
        "a limit below 0 deletes checkpoints",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "oldest_first[:-limit]",
        "oldest_first[: -limit - 1]",
        [
            "tests/training/test_checkpoints.py::test_rotation_keeps_what_was_saved_just_now_and_leaves_the_abandoned_course_first"
        ],
        "one checkpoint too many is kept",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "NAME.fullmatch(path.name)",
        "NAME.match(path.name)",
        [
            "tests/training/test_checkpoints.py::test_folders_of_other_names_are_neither_resumed_from_nor_deleted"
        ],
        "checkpoint-16-backup counts as 16",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "if found[step].is_dir()",
        "if True",
        [
            "tests/training/test_checkpoints.py::test_folders_of_other_names_are_neither_resumed_from_nor_deleted"
        ],
        "a file counts as a checkpoint",
    ),
    (
        "cir_cot/training/checkpoints.py",
        '        if not path.is_file():\n            return f"{name} is missing"\n',
        "        if not path.is_file():\n            continue\n",
        [
            "tests/training/test_checkpoints.py::test_a_checkpoint_that_lost_a_file_is_passed_over_by_last_and_refused_by_name"
        ],
        "a checkpoint that lost a file is resumed from",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "        if path.stat().st_size != size:",
        "        if path.stat().st_size > size:",
        [
            "tests/training/test_checkpoints.py::test_a_checkpoint_that_lost_a_file_is_passed_over_by_last_and_refused_by_name"
        ],
        "a checkpoint with a truncated file is resumed from",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "    for path in reversed(checkpoints(Path(folder)).values()):",
        "    for path in checkpoints(Path(folder)).values():",
        ["tests/training/test_checkpoints.py::test_the_newest_complete_one_by_number"],
        "the oldest checkpoint is taken for the newest",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "    except InputError as error:\n        return str(error)\n",
        "    except KeyError as error:\n        return str(error)\n",
        [
            "tests/training/test_checkpoints.py::test_a_damaged_marker_is_one_line_by_name_and_passed_over_by_last"
        ],
        "one damaged marker stops 'last'",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "    for name, value in identity.items():\n        if was.get(name) != value:",
        "    for name, value in identity.items():\n        if was.get(name, value) is None:",
        ["tests/training/test_checkpoints.py::test_last_continues_the_same_run_only"],
        "'last' continues a run with other arguments",
    ),
    (
        "cir_cot/training/checkpoints.py",
        "    if not isinstance(was, dict):\n        return\n",
        "    was = was or {}\n",
        [
            "tests/training/test_checkpoints.py::test_a_checkpoint_written_before_runs_had_an_identity_is_still_continued"
        ],
        "older checkpoints are refused",
    ),
    # ---- cir_cot/retriever.py
    (
        "cir_cot/retriever.py",
        'part.flags or [""] * len(part.explanations)',
        "part.flags",
        ["tests/evaluation/test_tables.py::test_outputs_of_batches_are_joined_in_order"],
        "flags of a batch are emptied",
    ),
    (
        "cir_cot/retriever.py",
        "[torch.zeros(0, dim)]",
        "[torch.zeros(1, dim)]",
        ["tests/evaluation/test_tables.py::test_outputs_of_batches_are_joined_in_order"],
        "no query has an embedding",
    ),
    (
        "cir_cot/heads/parts.py",
        "vectors.append(encode(pictures))",
        "vectors.append(encode(pictures[:-1]))",
        ["tests/test_inputs.py::test_a_head_takes_paths_one_or_many_in_batches_of_any_size"],
        "the last row of each part is lost",
    ),
    (
        "cir_cot/heads/parts.py",
        "        head.batch_size = before\n",
        "        pass\n",
        ["tests/test_inputs.py::test_a_head_takes_paths_one_or_many_in_batches_of_any_size"],
        "a batch size given once stays",
    ),
    (
        "cir_cot/retriever.py",
        'if settings["prompts"] != PROMPTS_VERSION:',
        "if False:",
        [
            "tests/contract/test_retriever_contract.py::test_a_folder_that_is_no_such_retriever_is_refused_by_name"
        ],
        "a retriever of other prompts is read",
    ),
    (
        "cir_cot/retriever.py",
        'if settings["format"] != FORMAT:',
        "if False:",
        [
            "tests/contract/test_retriever_contract.py::test_a_folder_that_is_no_such_retriever_is_refused_by_name"
        ],
        "a folder of another format is read",
    ),
    (
        "cir_cot/heads/base.py",
        "stored.keys() ^ own.keys()",
        "own.keys() - stored.keys()",
        ["tests/contract/test_retriever_contract.py::test_weights_of_another_head_are_refused"],
        "tensors that no head has are dropped in silence",
    ),
    (
        "cir_cot/heads/base.py",
        "if value.shape != own[name].shape:",
        "if value.dim() != own[name].dim():",
        ["tests/contract/test_retriever_contract.py::test_weights_of_another_head_are_refused"],
        "weights of another size",
    ),
    (
        "cir_cot/heads/base.py",
        'not name.startswith(("backbone.", "foreign."))',
        'not name.startswith(("backbone.",))',
        ["tests/models/test_foreign_space.py"],
        "a foreign encoder is saved with the head",
    ),
    (
        "cir_cot/heads/card.py",
        '{**facts, **facts["settings"]}',
        "{**facts}",
        ["tests/contract/test_retriever_contract.py::test_the_card_states_every_setting"],
        "the card leaves out the settings",
    ),
    (
        "cir_cot/retriever.py",
        "type(settings.get(key)) is not kind",
        "not isinstance(settings.get(key), kind)",
        [
            "tests/models/test_damaged_retriever.py::test_a_damaged_file_is_refused_in_one_line[retriever.json: format true]"
        ],
        "true counts as the number 1",
    ),
    (
        "cir_cot/retriever.py",
        '    if type(settings.get("frozen", False)) is not bool:',
        "    if False:",
        [
            "tests/models/test_damaged_retriever.py::test_a_damaged_file_is_refused_in_one_line[retriever.json: frozen text]"
        ],
        "any text freezes a retriever",
    ),
    # ---- cir_cot/profiling/roofline.py
    (
        "cir_cot/profiling/roofline.py",
        "passes = 2 + recompute + (chunks > 1)",
        "passes = 2 + recompute",
        ["tests/profiling/test_fullsize.py::test_a_step_costs_what_its_passes_cost"],
        "the floor of a cached step leaves out its second encoding",
    ),
    (
        "cir_cot/profiling/roofline.py",
        "return max(flops / self.flops, moved / self.bandwidth)",
        "return flops / self.flops",
        ["tests/profiling/test_fullsize.py::test_a_step_costs_what_its_passes_cost"],
        "memory bandwidth is left out of the floor",
    ),
    (
        "cir_cot/profiling/roofline.py",
        "cached=2 * width *",
        "cached=width *",
        ["tests/profiling/test_fullsize.py::test_the_costs_of_7b_are_those_of_its_published_size"],
        "keys without values in the cache's bytes",
    ),
    # ---- cir_cot/training/dataset.py
    (
        "cir_cot/training/dataset.py",
        "*record.targets[:1]]",
        "*record.targets]",
        ["tests/training/test_dataset.py"],
        "a row is left out for a target that is not trained on",
    ),
    (
        "cir_cot/training/dataset.py",
        "if missing and not args.drop_missing:",
        "if False:",
        ["tests/training/test_dataset.py"],
        "a missing picture surfaces in the middle of training",
    ),
    (
        "cir_cot/training/dataset.py",
        "if missing.isdisjoint(used([record]))]",
        "if used([record])[0] not in missing]",
        ["tests/training/test_dataset.py"],
        "a row without its target stays",
    ),
    (
        "cir_cot/training/dataset.py",
        "captions[index] if records[index].cot is None else None for index in kept",
        "captions[place] if records[index].cot is None else None for place, index in enumerate(kept)",
        ["tests/training/test_dataset.py"],
        "rows get captions of others when some are left out",
    ),
    (
        "cir_cot/training/dataset.py",
        "captions[index] if records[index].cot is None else None for index in kept",
        "captions[index] for index in kept",
        [
            "tests/training/test_dataset.py::test_a_row_with_a_chain_keeps_the_text_that_the_chain_is_about"
        ],
        "a chain beside a text that it is not about",
    ),
    (
        "cir_cot/training/dataset.py",
        "        if image in known and known[image].root != store.root:",
        "        if False:",
        ["tests/training/test_dataset.py::test_two_pictures_of_one_name_are_refused"],
        "one dataset's picture stands for another's",
    ),
    (
        "cir_cot/training/sampler.py",
        "random.choice(share.rows, rest, replace=False)",
        "random.choice(share.rows, rest)",
        ["tests/training/test_sampler.py::test_a_mixture_has_the_rows_that_the_weights_say"],
        "a row comes twice where the weight says once",
    ),
    (
        "cir_cot/training/sampler.py",
        "default_rng([self.seed, self.epoch, 1])",
        "default_rng([self.seed, 0, 1])",
        ["tests/training/test_sampler.py::test_a_mixture_has_the_rows_that_the_weights_say"],
        "every epoch has the same half of a dataset",
    ),
    (
        "cir_cot/training/arguments.py",
        "        if self.temperature <= 0:",
        "        if self.temperature < 0:",
        ["tests/training/test_dataset.py"],
        "a temperature of 0",
    ),
    # ---- cir_cot/training/run_folder.py
    (
        "cir_cot/training/run_folder.py",
        '    if (folder / SETTINGS_FILE).exists():\n        return "a trained retriever"\n',
        "",
        ["tests/training/test_run_folder.py::test_a_trained_retriever_is_not_replaced"],
        "a new run replaces a trained retriever",
    ),
    (
        "cir_cot/training/run_folder.py",
        "    if by_checkpoints:\n",
        "    if False:\n",
        [
            "tests/training/test_run_folder.py::test_a_new_run_does_not_start_among_the_checkpoints_of_another"
        ],
        "a new run mixes its checkpoints with another's",
    ),
    (
        "cir_cot/training/run_folder.py",
        "        if any((path / name).exists() for name in SAVED):\n",
        "        if True:\n",
        ["tests/training/test_run_folder.py::test_overwrite_removes_checkpoints_and_nothing_else"],
        "overwrite deletes a user's folder named like a checkpoint",
    ),
    (
        "cir_cot/training/run_folder.py",
        "        if args.overwrite and args.resume_from_checkpoint is None:",
        "        if args.overwrite:",
        [
            "tests/training/test_run_folder.py::test_overwrite_keeps_the_checkpoints_that_it_resumes_from"
        ],
        "overwrite deletes what it resumes from",
    ),
    (
        "cir_cot/training/run_folder.py",
        "    with locked(folder):\n",
        "    if folder.mkdir(parents=True, exist_ok=True) is None:\n",
        ["tests/training/test_run_folder.py::test_two_runs_do_not_write_one_folder"],
        "two runs write one folder",
    ),
    (
        "cir_cot/training/run_folder.py",
        "        digest.update(json.dumps(record_to_dict(record), sort_keys=True).encode())\n",
        "        digest.update(record.id.encode())\n",
        [
            "tests/training/test_run_folder.py::test_what_decides_the_weights_makes_another_run_and_nothing_else_does"
        ],
        "other texts pass for the same rows",
    ),
    (
        "cir_cot/training/run_folder.py",
        "sorted(own | DECISIVE)",
        "sorted(own)",
        [
            "tests/training/test_run_folder.py::test_what_decides_the_weights_makes_another_run_and_nothing_else_does"
        ],
        "another learning rate passes for the same run",
    ),
    (
        "cir_cot/training/run_folder.py",
        " - general - HARMLESS",
        " - general",
        [
            "tests/training/test_run_folder.py::test_what_decides_the_weights_makes_another_run_and_nothing_else_does"
        ],
        "smaller chunks make another run",
    ),
    # ---- cir_cot/search/same_origin.py
    (
        "cir_cot/search/same_origin.py",
        "if origin is not None and origin.lower() not in own:",
        "if False:",
        ["tests/search/test_demo.py::test_an_upload_from_another_origin_is_refused"],
        "another site may upload",
    ),
    (
        "cir_cot/search/same_origin.py",
        'if site == "same-origin" or (site == "none" and reading) or link:',
        'if site != "cross-site" or link:',
        ["tests/search/test_demo.py::test_an_upload_from_another_origin_is_refused"],
        "another port of this machine may upload",
    ),
    (
        "cir_cot/search/same_origin.py",
        '(site == "none" and reading)',
        'site == "none"',
        [
            "tests/search/test_demo.py::test_a_link_from_another_site_opens_the_page_and_nothing_else"
        ],
        "a form opened as a file may upload",
    ),
    (
        "cir_cot/search/same_origin.py",
        'link = reading and path == "/" and',
        "link = reading and",
        [
            "tests/search/test_demo.py::test_a_link_from_another_site_opens_the_page_and_nothing_else"
        ],
        "a link from another site reads the configuration",
    ),
    (
        "cir_cot/search/same_origin.py",
        'path == "/" and headers.get("sec-fetch-mode") == "navigate"',
        'path == "/"',
        [
            "tests/search/test_demo.py::test_a_link_from_another_site_opens_the_page_and_nothing_else"
        ],
        "another site fetches the page without opening it",
    ),
    (
        "cir_cot/search/same_origin.py",
        'return "" if same else "the referer is not this page"',
        'return ""',
        ["tests/search/test_demo.py::test_an_upload_from_another_origin_is_refused"],
        "any referer may upload",
    ),
    (
        "cir_cot/search/same_origin.py",
        'return "" if reading and not path.startswith(data) else',
        'return "" if reading else',
        ["tests/search/test_demo.py::test_a_picture_is_uploaded_and_read_by_the_page_alone"],
        "pictures are read by who does not say who asks",
    ),
    (
        "cir_cot/search/same_origin.py",
        'return "" if reading and not path.startswith(data) else',
        'return "" if not path.startswith(data + "u") else',
        ["tests/search/test_demo.py::test_a_picture_is_uploaded_and_read_by_the_page_alone"],
        "pictures are read by who does not say who asks",
    ),
    (
        "cir_cot/search/same_origin.py",
        'own = (f"http://{host}", f"https://{host}")',
        'own = (f"http://{host}",)',
        ["tests/search/test_demo.py::test_this_machines_names_and_named_hosts_are_answered"],
        "a proxy with encryption is refused",
    ),
    (
        "cir_cot/search/same_origin.py",
        '*message.get("headers", ()), *added',
        '*message.get("headers", ())',
        ["tests/search/test_demo.py::test_every_answer_has_the_security_headers"],
        "no security headers",
    ),
    (
        "cir_cot/search/same_origin.py",
        "await self.app(scope, receive, send_with_headers)",
        "await self.app(scope, receive, send)",
        ["tests/search/test_demo.py::test_every_answer_has_the_security_headers"],
        "pages lack the security headers",
    ),
    # ---- cir_cot/training/sampler.py
    (
        "cir_cot/training/sampler.py",
        "            short = blocks.pop() if blocks and len(blocks[-1]) < self.group_size else []",
        "            short = []",
        [
            "tests/training/test_sampler.py::test_a_short_block_never_shifts_the_others_across_the_batches"
        ],
        "a short block mixes references",
    ),
    # ---- cir_cot/data/scenes.py
    (
        "cir_cot/data/scenes.py",
        '"rectangle": WARM, "triangle": COOL}',
        '"rectangle": COOL, "triangle": WARM}',
        ["tests/data/test_scenes.py::test_novel_swaps_the_colours_of_rectangles_and_triangles"],
        "novel has the colours of training",
    ),
    (
        "cir_cot/data/scene_files.py",
        "is_test_scene(edit.result) == test:",
        "True:",
        ["tests/data/test_scenes.py::test_no_test_scene_is_ever_a_training_scene"],
        "targets mix training and test",
    ),
    (
        "cir_cot/data/scene_files.py",
        "if scene in seen or is_test_scene(scene) != test:",
        "if scene in seen:",
        ["tests/data/test_scenes.py::test_no_test_scene_is_ever_a_training_scene"],
        "references mix training and test",
    ),
    (
        "cir_cot/data/scenes.py",
        "mask = rng.randrange(1, 16)",
        "mask = 15",
        ["tests/data/test_scenes.py::test_selectors_are_partial_and_some_touch_several_objects"],
        "selectors name everything",
    ),
    (
        "cir_cot/data/scene_files.py",
        "tuple(same[edit.result])",
        "(target,)",
        [
            "tests/data/test_scenes.py::test_targets_are_all_pictures_of_the_target_scene_and_never_the_reference"
        ],
        "other pictures of the target scene count as wrong",
    ),
    (
        "cir_cot/data/scenes.py",
        "result == scene or not any(result)",
        "not any(result)",
        [
            "tests/data/test_scenes.py::test_targets_are_all_pictures_of_the_target_scene_and_never_the_reference",
            "tests/data/test_scenes.py::test_large_things_are_drawn_larger_than_small_ones",
            "tests/data/test_scenes.py::test_same_seed_same_bytes_and_the_folder_reads_back",
        ],
        "an edit changes nothing",
    ),
    (
        "cir_cot/data/scenes.py",
        " or not _within(palette, result)",
        "",
        ["tests/data/test_scenes.py::test_novel_swaps_the_colours_of_rectangles_and_triangles"],
        "edits leave the palette",
    ),
    (
        "cir_cot/data/scene_files.py",
        "edit.result not in found and",
        "",
        ["tests/data/test_scenes.py::test_a_references_other_edits_are_in_the_gallery_and_differ"],
        "the same",
        "the edits are kept by their result: a second one takes the first one's place",
    ),
    (
        "cir_cot/data/scenes.py",
        "row, column = divmod(slot, GRID)",
        "column, row = divmod(slot, GRID)",
        ["tests/data/test_scenes.py::test_pictures_show_the_words_and_no_two_renderings_are_equal"],
        "pictures are mirrored",
    ),
    (
        "cir_cot/data/scene_files.py",
        "size < 24 or size % 12",
        "size < 24",
        ["tests/data/test_scenes.py::test_unusable_sizes_are_refused_before_anything_is_written"],
        "a size of no whole cells",
    ),
    (
        "cir_cot/data/scene_files.py",
        'random.Random(f"{seed}/{image}")',
        'random.Random(f"{seed}")',
        [
            "tests/data/test_scenes.py::test_targets_are_all_pictures_of_the_target_scene_and_never_the_reference",
            "tests/data/test_scenes.py::test_large_things_are_drawn_larger_than_small_ones",
            "tests/data/test_scenes.py::test_same_seed_same_bytes_and_the_folder_reads_back",
        ],
        "every picture has the same jitter and background",
    ),
    (
        "cir_cot/data/scenes.py",
        '"small": 0.19',
        '"small": 0.36',
        [
            "tests/data/test_scenes.py::test_targets_are_all_pictures_of_the_target_scene_and_never_the_reference",
            "tests/data/test_scenes.py::test_large_things_are_drawn_larger_than_small_ones",
            "tests/data/test_scenes.py::test_same_seed_same_bytes_and_the_folder_reads_back",
        ],
        "small things are drawn large",
    ),
    (
        "cir_cot/data/scene_files.py",
        '"scenes", texts, overwrite, unread',
        '"scenes", texts, True, unread',
        ["tests/data/test_scenes.py::test_a_file_of_somebody_else_is_not_replaced"],
        "scenes replaces a user's files",
    ),
    (
        "cir_cot/search/qdrant_address.py",
        'return f"{PREFIX}{Path(place).resolve()}#{collection}"',
        "return kind",
        ["tests/search/test_qdrant_address.py"],
        "a collection is found from one working directory only",
    ),
    # ---- cir_cot/search/reference.py
    (
        "cir_cot/search/reference.py",
        "isinstance(image, ImageFile.ImageFile) else",
        "isinstance(image, str) else",
        ["tests/search/test_reference.py"],
        "a picture that is opened from the gallery finds itself",
    ),
    (
        "cir_cot/search/search.py",
        "left_out = [same.union(without) for same in copies]",
        "left_out = [set(without) for same in copies]",
        ["tests/search/test_reference.py"],
        "the reference itself is found",
    ),
    (
        "cir_cot/search/api.py",
        '"" if keep else digest_bytes(raw)',
        '""',
        ["tests/search/test_reference.py"],
        "the server finds the reference itself",
    ),
    (
        "cir_cot/search/dialogue.py",
        'return digest_bytes(state["upload"])',
        'return ""',
        ["tests/search/test_reference.py"],
        "an upload finds itself",
    ),
    (
        "eval/search.py",
        "[] if args.keep_reference else",
        "[] if True else",
        ["tests/search/test_reference.py"],
        "a file of queries finds the references themselves",
    ),
    (
        "cir_cot/search/question.py",
        'return address if len(address) <= MAX_ADDRESS else "?"',
        "return address",
        ["tests/search/test_question.py"],
        "an address that no server takes is shared",
    ),
    (
        "cir_cot/inputs.py",
        '        check_ratio(*image.size, f"picture {number}")\n',
        "",
        ["tests/test_inputs.py"],
        "a narrow picture in memory is an error of the processor",
    ),
    # ---- cir_cot/search/search.py
    (
        "cir_cot/search/search.py",
        '            check_text(text, "the text of the query")\n        for chain',
        "            pass\n        for chain",
        [
            "tests/search/test_search.py::test_texts_that_are_too_long_or_none_are_refused_before_they_are_encoded"
        ],
        "90,000 letters are encoded",
    ),
    (
        "cir_cot/search/search.py",
        "k + deeper",
        "k",
        ["tests/search/test_search.py"],
        "a picture too few is found",
    ),
    (
        "cir_cot/search/search.py",
        "if hit[0] not in gone][:k]",
        "if hit[0] not in gone]",
        ["tests/search/test_search.py"],
        "more pictures than asked for",
    ),
    # ---- cir_cot/integrations/sentence_transformers.py
    (
        "cir_cot/integrations/sentence_transformers.py",
        'last = RET if head.readout == "ret" else ""',
        "last = RET",
        [
            "tests/integrations/test_export.py::test_its_template_writes_our_tokens_and_no_text_writes_a_special_one"
        ],
        "before_ret pools the token itself",
    ),
    (
        "cir_cot/integrations/sentence_transformers.py",
        '"text": {"truncation": False}',
        '"text": {"truncation": True}',
        [
            "tests/integrations/test_export.py::test_it_cuts_no_text_and_lets_none_write_a_special_token",
            "tests/integrations/test_export.py::test_its_template_refuses_what_is_no_picture_and_no_query",
        ],
        "the retrieval token may be cut off",
    ),
    (
        "cir_cot/integrations/sentence_transformers.py",
        '"sanitize_control_tokens": True',
        '"sanitize_control_tokens": False',
        [
            "tests/integrations/test_export.py::test_it_cuts_no_text_and_lets_none_write_a_special_token",
            "tests/integrations/test_export.py::test_its_template_refuses_what_is_no_picture_and_no_query",
        ],
        "a text writes special tokens",
    ),
    (
        "cir_cot/integrations/sentence_transformers.py",
        "{%- if found.images != 1 -%}",
        "{%- if found.images > 1 -%}",
        [
            "tests/integrations/test_export.py::test_it_cuts_no_text_and_lets_none_write_a_special_token",
            "tests/integrations/test_export.py::test_its_template_refuses_what_is_no_picture_and_no_query",
        ],
        "a text without picture is a query",
    ),
    # ---- cir_cot/chains/budget.py
    (
        "cir_cot/chains/budget.py",
        "prompt + completion <= self.max_tokens",
        "prompt + completion < self.max_tokens",
        ["tests/chains/test_teacher.py::test_a_budget_may_be_used_up_exactly"],
        "<= to < at the budget of tokens",
    ),
    (
        "cir_cot/chains/budget.py",
        "self.cost(prompt, completion) <= self.max_cost",
        "self.cost(prompt, completion) < self.max_cost",
        ["tests/chains/test_teacher.py::test_a_budget_may_be_used_up_exactly"],
        "<= to < at the budget of money",
    ),
    (
        "cir_cot/chains/budget.py",
        "while not self.fits(prompt, completion, self.open):",
        "while not self.fits(prompt, completion):",
        ["tests/chains/test_teacher.py::test_no_call_begins_that_could_exceed_the_budget"],
        "calls under way are not counted",
    ),
    (
        "cir_cot/chains/budget.py",
        "completion += self.completion_tokens + sum(row[1] for row in others)",
        "completion += self.completion_tokens",
        ["tests/chains/test_teacher.py::test_a_budget_may_be_used_up_exactly"],
        "answers of calls under way are not counted",
    ),
    # ---- cir_cot/storage.py
    (
        "cir_cot/storage.py",
        "fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)",
        "fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB)",
        ["tests/test_storage.py"],
        "two hold the lock",
    ),
    (
        "cir_cot/storage.py",
        "    finally:\n        os.close(handle)\n",
        "    finally:\n        pass\n",
        ["tests/test_storage.py::test_a_lock_is_let_go_when_the_work_fails"],
        "a lock stays held",
    ),
    (
        "cir_cot/storage.py",
        "if content.isdigit() or not content:",
        "if True:",
        ["tests/test_storage.py::test_a_file_with_other_content_keeps_it_when_it_is_locked"],
        "another's file is overwritten by the lock",
    ),
    (
        "cir_cot/storage.py",
        "(0 if wait else fcntl.LOCK_NB)",
        "fcntl.LOCK_NB",
        [
            "tests/test_storage.py::test_a_lock_that_may_wait_gets_its_turn",
            "tests/training/test_vision_cache.py::test_features_are_written_by_one_process_at_a_time_and_synced_before_they_count",
        ],
        "a writer that should wait is refused",
    ),
    # ---- cir_cot/data/submission.py
    (
        "cir_cot/data/submission_check.py",
        "    if len(ids) != LENGTHS[kind]:",
        "    if len(ids) < LENGTHS[kind]:",
        ["tests/data/test_submission.py"],
        "lists that are too long are valid",
    ),
    (
        "cir_cot/data/submission.py",
        '"submit", contents, overwrite',
        '"submit", contents, True',
        ["tests/data/test_submission.py::test_a_file_of_somebody_else_is_not_replaced"],
        "submit replaces a user's file",
    ),
    (
        "cir_cot/data/submission_check.py",
        "    if len(set(ids)) != len(ids):",
        "    if False:",
        ["tests/data/test_damaged_files.py::test_an_image_submitted_twice_among_many_is_found"],
        "a picture twice is valid",
    ),
    (
        "cir_cot/data/submission_check.py",
        "    if len(lists) == len(test.records):",
        "    if len(lists) >= len(test.records):",
        [
            "tests/data/test_submission.py::test_a_file_of_a_val_split_with_more_queries_than_test_is_told_too"
        ],
        "a file of val with more queries than test is checked as test",
    ),
    (
        "cir_cot/data/submission_check.py",
        "    if size > MAX_BYTES:",
        "    if size >= MAX_BYTES:",
        ["tests/data/test_submission.py::test_a_file_of_exactly_the_servers_limit_is_valid"],
        "a file of exactly 5 MB is refused",
    ),
    # ---- cir_cot/evaluation/tables.py
    (
        "cir_cot/evaluation/tables.py",
        "if len(metrics) > 1:",
        "if len(metrics) > 0:",
        ["tests/evaluation/test_report.py"],
        "one category gets a mean",
    ),
    (
        "cir_cot/evaluation/tables.py",
        "first.setdefault(result.name, result)",
        "first[result.name] = result",
        ["tests/evaluation/test_report.py", "tests/evaluation/test_tables.py"],
        "the last reading leads",
    ),
    (
        "cir_cot/evaluation/tables.py",
        "for p in shares) / math.log(len(loads))",
        "for p in shares) / math.log(len(shares))",
        ["tests/evaluation/test_tables.py"],
        "entropy is relative to the used parts",
    ),
    (
        "cir_cot/evaluation/tables.py",
        "-int(-percent // 2)",
        "int(percent // 2)",
        ["tests/evaluation/test_tables.py"],
        "a small load has no bar",
    ),
    (
        "cir_cot/evaluation/tables.py",
        "loads.append(100 * total / len(records))",
        "loads.append(100 * total)",
        ["tests/evaluation/test_tables.py"],
        "loads are sums",
    ),
    (
        "cir_cot/evaluation/tables.py",
        '"ties against the model"])',
        "])",
        ["tests/evaluation/test_report.py"],
        "the summary does not say how ties are decided",
    ),
    (
        "cir_cot/evaluation/tables.py",
        'return "oracle (upper bound)" if reading == "oracle" else reading',
        "return reading",
        [
            "tests/evaluation/test_tables.py::test_the_first_reading_of_a_set_leads_and_the_oracle_is_called_an_upper_bound"
        ],
        "the oracle is not called an upper bound",
    ),
    # ---- cir_cot/chains/teacher.py
    (
        "cir_cot/chains/teacher.py",
        "if picture.width * picture.height > max_pixels:",
        "if False:",
        ["tests/chains/test_teacher.py::test_a_picture_is_sent_small_and_without_any_metadata"],
        "pictures are sent in full size",
    ),
    (
        "cir_cot/chains/teacher.py",
        "smart_size(picture.height, picture.width, max_pixels",
        "smart_size(picture.width, picture.height, max_pixels",
        ["tests/chains/test_teacher.py::test_a_picture_is_sent_small_and_without_any_metadata"],
        "pictures are sent in the wrong shape",
    ),
    (
        "cir_cot/chains/teacher.py",
        "clean.info = {}",
        "pass",
        ["tests/chains/test_teacher.py::test_a_picture_is_sent_small_and_without_any_metadata"],
        "a JPEG comment leaves the machine",
    ),
    (
        "cir_cot/chains/conversation.py",
        '        if not answer.complete:\n            self.problem = truncated("joint")\n            return\n',
        "",
        [
            "tests/chains/test_teacher.py::test_an_answer_that_its_limit_cut_is_refused_in_every_mode"
        ],
        "a truncated joint answer is taken",
    ),
    (
        "cir_cot/chains/conversation.py",
        '    if not answer.complete:\n        raise Unanswered(truncated("score")',
        '    if False:\n        raise Unanswered(truncated("score")',
        [
            "tests/chains/test_teacher.py::test_an_answer_that_its_limit_cut_is_refused_in_every_mode"
        ],
        "a truncated score is taken",
    ),
    (
        "cir_cot/chains/conversation.py",
        "    too_long = len(answer.text) > LETTERS * MAX_TOKENS[kind]\n    return",
        "    too_long = False\n    return",
        ["tests/chains/test_teacher.py::test_a_hostile_answer_is_refused_by_name_in_every_mode"],
        "answers have no limit of length",
    ),
    (
        "cir_cot/chains/conversation.py",
        "        too_long = [part for part in PARTS if len(self.parts[part]) > LETTERS * MAX_TOKENS[part]]",
        "        too_long = []",
        ["tests/chains/test_teacher.py::test_a_hostile_answer_is_refused_by_name_in_every_mode"],
        "a joint answer's caption has no limit",
    ),
    (
        "cir_cot/chains/conversation.py",
        '(refused[: LETTERS * MAX_TOKENS["joint"]], self.problem)',
        "(refused, self.problem)",
        [
            "tests/chains/test_teacher.py::test_a_complaint_sends_back_a_bounded_piece_of_a_long_answer"
        ],
        "a long answer is sent back whole",
    ),
    (
        "cir_cot/chains/teacher.py",
        '    return reason if len(reason) <= REASON else reason[: REASON - 1] + "…"',
        "    return reason",
        ["tests/chains/test_teacher.py::test_a_hostile_answer_is_refused_by_name_in_every_mode"],
        "a reason quotes a whole answer",
    ),
    (
        "cir_cot/chains/teacher.py",
        "        self.raw = raw[:RAW]",
        "        self.raw = raw",
        ["tests/chains/test_teacher.py::test_a_hostile_answer_is_refused_by_name_in_every_mode"],
        "the quarantine keeps answers of any length",
    ),
    (
        "cir_cot/chains/teacher.py",
        "    clean.info = {}",
        "    clean.info = dict(picture.info)",
        ["tests/chains/test_teacher.py::test_a_picture_is_sent_small_and_without_any_metadata"],
        "a picture's comment is sent",
    ),
    (
        "cir_cot/chains/conversation.py",
        "for part in PARTS[len(self.parts) :]:",
        "for part in PARTS:",
        [
            "tests/chains/test_teacher.py::test_only_the_part_at_fault_and_what_follows_is_asked_for_again"
        ],
        "a repair asks for every part again",
    ),
    (
        "cir_cot/chains/conversation.py",
        "    if len(found) != 1:",
        "    if not found:",
        ["tests/chains/test_teacher.py::test_what_is_no_score_is_no_score"],
        "of two scores the first is taken",
    ),
    # ---- cir_cot/models/tiny_qwen.py
    (
        "cir_cot/models/tiny_qwen.py",
        "with torch.random.fork_rng(devices=[]):\n        torch.manual_seed(seed)\n        model = kind(config)\n    model.gen",
        "if True:\n        torch.manual_seed(seed)\n        model = kind(config)\n    model.gen",
        [
            "tests/models/test_tiny_qwen.py::test_the_seed_decides_the_weights_and_the_global_state_is_left_alone"
        ],
        "a tiny model changes the global random state",
    ),
    (
        "cir_cot/models/tiny_qwen.py",
        "rows = len(tokenizer) + SPARE_ROWS",
        "rows = len(tokenizer)",
        ["tests/models/test_tiny_qwen.py::test_there_are_spare_rows"],
        "no spare rows",
    ),
    (
        "cir_cot/models/tiny_qwen.py",
        '"vocab_size": -(-rows // 64) * 64',
        '"vocab_size": rows',
        ["tests/models/test_tiny_qwen.py::test_there_are_spare_rows"],
        "rows are no multiple of 64",
    ),
    (
        "cir_cot/models/tiny_qwen.py",
        '"shortest_edge": min_pixels, "longest_edge": max_pixels}',
        '"shortest_edge": min_pixels, "longest_edge": 4 * max_pixels}',
        ["tests/models/test_tiny_qwen.py::test_a_large_picture_is_bounded"],
        "a large picture has four times the tokens",
    ),
    (
        "cir_cot/models/tiny_qwen.py",
        "tie_word_embeddings=chosen.tie",
        "tie_word_embeddings=True",
        ["tests/models/test_tiny_qwen.py::test_a_written_checkpoint_loads_as_a_real_one"],
        "tie=False is ignored",
    ),
    # ---- cir_cot/models/tiny_clip.py
    (
        "cir_cot/models/tiny_clip.py",
        "with torch.random.fork_rng(devices=[]):\n",
        "if True:\n",
        ["tests/models/test_clip.py::test_a_tiny_clip_leaves_the_global_random_state_alone"],
        "a tiny CLIP changes the global random state",
    ),
    # ---- cir_cot/losses.py
    (
        "cir_cot/losses.py",
        "return summed(hidden, wanted) / max(len(wanted), 1)",
        "return summed(hidden, wanted) / max(len(wanted), 2)",
        ["tests/training/test_token_loss.py"],
        "a single word counts half",
    ),
    (
        "cir_cot/losses.py",
        "return sum(losses) / max(len(wanted), 1)",
        "return sum(losses)",
        ["tests/training/test_token_loss.py"],
        "tiles give the sum",
    ),
    (
        "cir_cot/losses.py",
        "logits(states).float(), tokens",
        "logits(states), tokens",
        ["tests/training/test_token_loss.py"],
        "the loss is computed in the model's own precision",
    ),
    (
        "cir_cot/losses.py",
        "max(1, tile // vocabulary)",
        "max(1, -(-tile // vocabulary))",
        [
            "tests/training/test_token_loss.py::test_a_tile_holds_as_many_whole_rows_as_fit_and_at_least_one"
        ],
        "a tile holds a row more than its bound",
    ),
    (
        "cir_cot/losses.py",
        "max(1, tile // vocabulary)",
        "max(2, tile // vocabulary)",
        [
            "tests/training/test_token_loss.py::test_a_tile_holds_as_many_whole_rows_as_fit_and_at_least_one"
        ],
        "the least tile is two rows",
    ),
    (
        "cir_cot/losses.py",
        'reduction="sum"',
        'reduction="mean"',
        ["tests/training/test_token_loss.py::test_tiles_change_neither_loss_nor_gradients"],
        "tiles are averaged before they are summed",
    ),
    (
        "cir_cot/losses.py",
        "if count == 1:",
        "if True:",
        ["tests/training/test_token_loss.py::test_tiles_bound_memory"],
        "all logits are in memory at once",
    ),
    (
        "cir_cot/losses.py",
        "return summed(hidden, wanted) / max(len(wanted), 1)",
        "return summed(hidden, wanted) / len(wanted)",
        ["tests/training/test_token_loss.py::test_no_word_is_no_loss_and_still_has_gradients"],
        "the loss of no words is NaN",
    ),
    (
        "cir_cot/losses.py",
        "max(gather_counts",
        "min(gather_counts",
        [
            "tests/training/test_token_loss.py::test_processes_with_unequal_rows_compute_equally_many_tiles"
        ],
        "a process with few rows cuts the tiles of all",
    ),
    # ---- cir_cot/training/trainer.py
    (
        "cir_cot/training/trainer.py",
        "            commit_checkpoint(run, name, None if self.args.save_only_model else facts)\n            rotate(run, limit, self.state.global_step, self.state.best_global_step or 0)\n",
        "            rotate(run, limit, self.state.global_step, self.state.best_global_step or 0)\n            commit_checkpoint(run, name, None if self.args.save_only_model else facts)\n",
        ["tests/training/test_trainer.py::test_old_checkpoints_are_deleted_only_beyond_the_limit"],
        "rotation comes before publishing",
    ),
    # ---- cir_cot/training/vision_cache.py
    (
        "cir_cot/training/feature_folder.py",
        "        if digest is not None and digest != _digest(value):",
        "        if False:",
        [
            "tests/training/test_vision_cache.py::test_a_flipped_bit_in_stored_features_is_named_when_they_are_used"
        ],
        "flipped features are used",
    ),
    (
        "cir_cot/training/feature_folder.py",
        "            with locked(self.folder, wait=True):\n                self._read_shards()\n",
        "            if True:\n                self._read_shards()\n",
        [
            "tests/training/test_vision_cache.py::test_features_are_written_by_one_process_at_a_time_and_synced_before_they_count"
        ],
        "two write at once",
    ),
    (
        "cir_cot/training/feature_folder.py",
        "for key in features if key not in self.stored})",
        "for key in features})",
        ["tests/training/test_vision_cache.py::test_two_runs_at_once_store_every_picture_once"],
        "features are stored twice",
    ),
    (
        "cir_cot/training/feature_folder.py",
        "        if not isinstance(was, dict):",
        "        if False:",
        ["tests/training/test_vision_cache.py::test_a_damaged_identity_is_one_line"],
        "a damaged identity is a traceback",
    ),
    (
        "cir_cot/training/vision_cache.py",
        "            if self.disk is None:\n                self.forget()\n",
        "",
        [
            "tests/training/test_vision_cache.py::test_features_do_not_outlive_the_step_that_shares_them"
        ],
        "features of all steps pile up in host memory",
    ),
    # ---- cir_cot/webpage.py
    (
        "cir_cot/webpage.py",
        "default-src 'none'; img-src data:;",
        "default-src *; img-src data:;",
        ["tests/evaluation/test_report.py::test_the_page_is_well_formed_and_loads_nothing"],
        "a page may load anything",
    ),
    (
        "cir_cot/webpage.py",
        "<td>{escape(value)}</td>",
        "<td>{value}</td>",
        [
            "tests/evaluation/test_report.py::test_markup_in_texts_and_chains_stays_text",
            "tests/chains/test_chain_report.py::test_every_text_is_escaped_and_nothing_is_loaded",
        ],
        "a cell's markup is markup",
    ),
    (
        "cir_cot/webpage.py",
        'alt="{escape(alt)}"',
        'alt="{alt}"',
        [
            "tests/evaluation/test_report.py::test_markup_in_an_image_id_stays_in_the_alternative_text"
        ],
        "an id's quotation mark ends the attribute",
    ),
    (
        "cir_cot/webpage.py",
        "{escape(name)}</text>'\n            f'<rect class=\"track\"",
        "{name}</text>'\n            f'<rect class=\"track\"",
        ["tests/test_webpage.py"],
        "a bar's label is markup",
    ),
    (
        "cir_cot/webpage.py",
        "max(0.0, min(100.0, value))",
        "value",
        ["tests/test_webpage.py"],
        "a bar leaves its track",
    ),
    (
        "cir_cot/webpage.py",
        "small.thumbnail((side, side), Image.Resampling.LANCZOS)",
        "pass",
        ["tests/test_webpage.py"],
        "whole pictures are in the page",
    ),
    (
        "cir_cot/webpage.py",
        "x = LEFT + WIDTH * (math.log10(cost) - low)",
        "x = LEFT + WIDTH * (cost - low)",
        [
            "tests/benchmarks/test_heads_benchmark.py::test_a_scatter_plot_places_points_by_the_logarithm_of_their_cost"
        ],
        "points stand at their cost",
    ),
    (
        "cir_cot/webpage.py",
        "<title>{escape(title)}",
        "<title>{title}",
        ["tests/test_webpage.py::test_a_hostile_text_in_any_field_stays_text"],
        "a title is HTML",
    ),
    (
        "cir_cot/webpage.py",
        "<td>{escape(value)}",
        "<td>{value}",
        ["tests/test_webpage.py::test_a_hostile_text_in_any_field_stays_text"],
        "a cell is HTML",
    ),
    (
        "cir_cot/webpage.py",
        '<th scope="row">{escape(first)}',
        '<th scope="row">{first}',
        ["tests/test_webpage.py::test_a_hostile_text_in_any_field_stays_text"],
        "a row's name is HTML",
    ),
    (
        "cir_cot/webpage.py",
        'aria-label="{escape(what)}"',
        'aria-label="{what}"',
        ["tests/test_webpage.py::test_a_hostile_text_in_any_field_stays_text"],
        "a chart's label is HTML",
    ),
    (
        "cir_cot/webpage.py",
        "{number} {escape(name)}",
        "{number} {name}",
        ["tests/test_webpage.py::test_a_hostile_text_in_any_field_stays_text"],
        "a point's label is HTML",
    ),
    (
        "cir_cot/webpage.py",
        "max(0.0, min(100.0, value))",
        "min(100.0, value)",
        ["tests/test_webpage.py::test_bars_are_as_long_as_their_percentages_within_the_chart"],
        "a bar of negative width",
    ),
    (
        "cir_cot/webpage.py",
        "y = HEIGHT - (HEIGHT - TOP) * percent / 100\n        parts += [\n            f'<path",
        "y = HEIGHT * percent / 100\n        parts += [\n            f'<path",
        ["tests/test_webpage.py"],
        "the axis is upside down",
    ),
    (
        "cir_cot/webpage.py",
        "small = picture.copy()",
        "small = picture",
        ["tests/test_webpage.py::test_a_thumbnail_keeps_its_shape_and_never_grows"],
        "the caller's picture shrinks",
    ),
    # ---- cir_cot/chains/openai_messages.py
    (
        "cir_cot/chains/openai_messages.py",
        'plain("\\n".join(texts))',
        '"\\n".join(texts)',
        [
            "tests/chains/test_teacher.py::test_three_stages_each_with_what_it_may_see",
            "tests/chains/test_teacher.py::test_special_tokens_of_a_text_are_broken_up_on_the_wire",
        ],
        "special tokens of a text reach the server as such",
    ),
    (
        "cir_cot/chains/openai_messages.py",
        'text.encode("utf-8", "replace").decode("utf-8")',
        "text",
        [
            "tests/chains/test_teacher.py::test_half_a_surrogate_pair_of_a_server_becomes_a_question_mark"
        ],
        "surrogates of an answer",
    ),
    (
        "cir_cot/chains/openai_messages.py",
        "0 <= value < 2**31",
        "0 <= value <= 2**31",
        ["tests/chains/test_teacher.py::test_tokens_are_billed_as_counted_where_the_count_is_one"],
        "a token count of 2^31 is billed",
    ),
    (
        "cir_cot/chains/openai_messages.py",
        "type(value) is int and 0",
        "isinstance(value, int) and 0",
        ["tests/chains/test_teacher.py::test_tokens_are_billed_as_counted_where_the_count_is_one"],
        "true is a token count",
    ),
    (
        "cir_cot/chains/openai_messages.py",
        "parsedate_to_datetime(value).timestamp() - time.time()",
        "0.0",
        ["tests/chains/test_teacher.py::test_retry_after_is_a_number_or_a_date"],
        "Retry-After as a date",
    ),
    (
        "cir_cot/chains/openai_messages.py",
        "max(0.0, seconds) if math.isfinite(seconds) else 0.0",
        "max(0.0, seconds)",
        ["tests/chains/test_teacher.py::test_retry_after_is_a_number_or_a_date"],
        "Retry-After: inf waits five minutes",
    ),
    (
        "cir_cot/chains/openai_client.py",
        "            if self.size > MAX_BYTES:",
        "            if False:",
        ["tests/chains/test_teacher.py::test_every_request_ends_and_says_why[10 MB]"],
        "an answer is read without limit",
    ),
    (
        "cir_cot/chains/openai_client.py",
        "httpx2.Headers([*own, *FIXED_HEADERS, *kept])",
        "httpx2.Headers([*request.headers.items(), *own])",
        ["tests/chains/test_teacher.py::test_the_environment_adds_no_header_and_no_proxy"],
        "headers of the environment are sent",
    ),
    (
        "cir_cot/chains/openai_messages.py",
        'redact(" ".join(raw[:QUOTED].decode("utf-8", "replace").split()))[:SHOWN]',
        'redact(" ".join(raw[:SHOWN].decode("utf-8", "replace").split()))',
        ["tests/chains/test_teacher.py::test_no_half_of_a_key_is_left_where_an_error_is_cut"],
        "half a key is left in an error",
    ),
    # ---- constraints.txt
    (
        "constraints.txt",
        "ruff==0.17.6",
        "ruff==0.17.5",
        ["tests/test_versions.py::test_the_hook_runs_the_pinned_ruff"],
        "the hook and make check run different ruffs",
    ),
    (
        "constraints.txt",
        "transformers==5.24.0",
        "transformers==6.0.0",
        ["tests/test_versions.py::test_every_requirement_is_pinned_within_its_bounds"],
        "a pin lies outside of setup.cfg's bounds",
    ),
    # ---- data_gen/annotate.py
    (
        "cir_cot/chains/job_options.py",
        '        if self.see_target and not self.split.startswith("train"):',
        "        if False:",
        ["tests/chains/test_annotate.py::test_unusable_arguments_end_in_one_line[target on val]"],
        "an evaluation split is shown its targets",
    ),
    (
        "cir_cot/chains/job_options.py",
        "0 < self.timeout < math.inf",
        "0 < self.timeout",
        ["tests/chains/test_annotate.py::test_unusable_arguments_end_in_one_line[endless time]"],
        "an endless timeout",
    ),
    (
        "cir_cot/chains/job_options.py",
        "all(0 <= price < math.inf for price in self.price or ())",
        "min(self.price or [0.0]) >= 0",
        ["tests/chains/test_annotate.py::test_unusable_arguments_end_in_one_line[no price]"],
        "a price that is no number",
    ),
    (
        "cir_cot/chains/job_options.py",
        "not self.out.is_file():",
        "False:",
        ["tests/chains/test_annotate.py::test_unusable_arguments_end_in_one_line[a folder]"],
        "a lock is made beside a device or a folder",
    ),
    # ---- data_gen/check.py
    (
        "cir_cot/data/check.py",
        "            if record.subset and target not in record.subset:",
        "            if False:",
        ["tests/chains/test_check_chains.py"],
        "a target outside its subset passes",
    ),
    (
        "cir_cot/data/check.py",
        "    few = len(leaked) <= FEW *",
        "    few = len(leaked) >= FEW *",
        ["tests/chains/test_check_chains.py"],
        "many leaked queries are a warning",
    ),
    (
        "cir_cot/data/check.py",
        '        return "fine", store.fingerprint(name)',
        '        return "fine", name',
        ["tests/chains/test_check_chains.py::test_faults_of_pictures_and_the_effective_gallery"],
        "copies of a picture are not found",
    ),
    # ---- data_gen/export_chains.py
    (
        "data_gen/export_chains.py",
        'if relative.startswith("../"):',
        "if False:",
        [
            "tests/chains/test_chain_export.py::test_pictures_behind_a_link_out_of_the_folder_are_left_out"
        ],
        "paths out of the dataset are exported",
    ),
    # ---- data_gen/triplets.py
    (
        "cir_cot/data/triplet_files.py",
        '"triplets", files, overwrite',
        '"triplets", files, True',
        ["tests/data/test_triplets.py::test_what_somebody_wrote_by_hand_is_not_replaced"],
        "triplets replaces hand-written records",
    ),
    (
        "cir_cot/data/triplets.py",
        "MAX_PARTS_CHANGED = 3",
        "MAX_PARTS_CHANGED = 4",
        ["tests/data/test_triplets.py::test_edits_of_captions_say_what_differs"],
        "an edit has four parts",
    ),
    (
        "cir_cot/data/triplet_files.py",
        "number < share * 2**64",
        "number < share * 2**63",
        [
            "tests/data/test_triplets.py::test_edits_of_labels_lead_to_every_picture_that_has_them",
            "tests/data/test_triplets.py::test_about_the_asked_share_is_held_out",
        ],
        "half the asked share is held out",
    ),
    # ---- eval/calibrate.py
    (
        "eval/calibrate.py",
        'facts["settings"]["threshold"] = threshold',
        'facts["threshold"] = threshold',
        ["tests/evaluation/test_calibrate.py::test_a_checkpoint_is_calibrated"],
        "the threshold is written where nothing reads it",
    ),
    (
        "eval/calibrate.py",
        'facts["settings"]["gate"] = True',
        'facts["gate"] = True',
        [
            "tests/evaluation/test_calibrate.py::test_the_decision_is_learned_from_what_chains_were_worth"
        ],
        "what was learned is never loaded",
    ),
    (
        "eval/calibrate.py",
        "write_bytes_atomic(path, safetensors.torch.save(load_tensors(path) | gate))",
        "assert gate",
        [
            "tests/evaluation/test_calibrate.py::test_the_decision_is_learned_from_what_chains_were_worth"
        ],
        "the weights of what was learned are not stored",
    ),
    (
        "cir_cot/heads/qwen.py",
        'stored.pop("gate", None)',
        "pass",
        ["tests/evaluation/test_calibrate.py::test_a_gate_is_dropped_where_training_continues"],
        "a gate decides on states that it was not fitted to",
    ),
    (
        "cir_cot/heads/qwen.py",
        'left_out += ("gate.",)',
        "pass",
        [
            "tests/evaluation/test_calibrate.py::test_weights_of_a_gate_without_its_settings_are_left_out"
        ],
        "an interrupted calibration leaves a head that cannot be loaded",
    ),
    (
        "cir_cot/heads/adaptive.py",
        "if self.gate is not None:\n            return",
        "if False:\n            return",
        [
            "tests/evaluation/test_calibrate.py::test_the_decision_is_learned_from_what_chains_were_worth"
        ],
        "the gate decides nothing",
    ),
    (
        "cir_cot/heads/adaptive.py",
        "gate.bias.copy_(bias - (weight * mean / spread).sum())",
        "gate.bias.copy_(bias)",
        ["tests/evaluation/test_calibrate.py::test_a_gate_finds_the_direction_and_the_rate"],
        "the gate is shifted by the features' means",
    ),
    (
        "cir_cot/heads/adaptive.py",
        "penalty / 2 * weight.square().sum()",
        "0 * penalty * weight.square().sum()",
        ["tests/evaluation/test_calibrate.py::test_a_feature_of_noise_is_held_back_by_the_penalty"],
        "the regression has no penalty",
    ),
    (
        "cir_cot/heads/adaptive.py",
        "logits = scaled[~seen] @ weight + bias",
        "logits = scaled[~seen] @ weight * 0 + bias",
        ["tests/evaluation/test_calibrate.py::test_a_gate_finds_the_direction_and_the_rate"],
        "the penalty is chosen without looking at the weights",
    ),
    (
        "cir_cot/evaluation/calibration.py",
        "(without or behind) <= (with_chain or behind)",
        "(without or behind) < (with_chain or behind)",
        [
            "tests/evaluation/test_calibrate.py::test_a_chain_that_brings_the_target_no_further_forward_is_needless"
        ],
        "a chain that changes nothing counts as needed",
    ),
    (
        "cir_cot/evaluation/calibration.py",
        "records[done : done + len(pictures)]",
        "records[: len(pictures)]",
        [
            "tests/evaluation/test_calibrate.py::test_each_query_has_its_own_confidence_whatever_the_batch"
        ],
        "every batch is as sure as the first queries' words",
    ),
    # ---- eval/check_submission.py
    (
        "eval/check_submission.py",
        '1 if any(report["problems"]',
        '1 if all(report["problems"]',
        ["tests/data/test_submission.py::test_one_bad_file_of_two_is_a_failure"],
        "a bad file beside a good one passes",
    ),
    # ---- eval/demo.py
    (
        "cir_cot/search/demo_page.py",
        "blocks.has_launched = True",
        "pass",
        ["tests/search/test_demo.py::test_an_event_takes_no_file_that_was_not_uploaded"],
        "a forged event reads any picture of this machine",
    ),
    (
        "cir_cot/search/demo_page.py",
        "checks(hosts, data=",
        "checks([], data=",
        ["tests/search/test_demo.py::test_this_machines_names_and_named_hosts_are_answered"],
        "--allowed-host does nothing",
    ),
    (
        "eval/demo.py",
        'if "*" in name or "/" in name or not name',
        'if "/" in name or not name',
        ["tests/search/test_demo.py::test_an_allowed_host_is_a_name"],
        "--allowed-host '*' answers every name",
    ),
    (
        "eval/demo.py",
        "        listen(port) as listening,\n",
        "        load_page() as _,\n        listen(port) as listening,\n",
        ["tests/search/test_demo.py::test_a_busy_port_ends_the_command_before_a_model_is_loaded"],
        "a busy port is noticed after the model is loaded",
    ),
    (
        "cir_cot/search/demo_events.py",
        "{escape(text)}</p>",
        "{text}</p>",
        ["tests/search/test_demo.py::test_what_people_and_models_write_is_escaped"],
        "a message is HTML",
    ),
    # ---- eval/score.py
    (
        "cir_cot/data/benchmark.py",
        "first if same else",
        "first if True else",
        ["tests/data/test_score_script.py::test_all_categories_and_their_mean"],
        "the protocol of the first category stands for all",
    ),
    # ---- eval/search.py
    (
        "eval/search.py",
        '        cot = row.pop("cot", None)',
        '        cot = row.get("cot")',
        ["tests/search/test_search.py::test_a_chain_of_null_is_no_chain"],
        "a chain of null is a traceback",
    ),
    # ---- eval/submit.py
    (
        "eval/submit.py",
        "    return 1 if problems else 0",
        "    return 0",
        ["tests/data/test_submission.py::test_what_was_written_but_is_not_valid_is_a_failure"],
        "an invalid submission passes",
    ),
    # ---- setup.cfg
    (
        "setup.cfg",
        "pillow>=10.3",
        "pillow",
        ["tests/test_versions.py::test_a_version_with_a_known_hole_is_not_admitted"],
        "a Pillow with a heap overflow is admitted",
    ),
    # ---- cir_cot/training/quickstart.py
    (
        "cir_cot/training/quickstart.py",
        "    if (out / SUMMARY).exists() and not overwrite:",
        "    if False:",
        [
            "tests/training/test_quickstart.py::test_a_quickstart_replaces_only_what_a_quickstart_wrote"
        ],
        "a finished quickstart is replaced",
    ),
    (
        "cir_cot/training/quickstart.py",
        "    if found and not (out / MARK).exists() and not overwrite:",
        "    if False:",
        [
            "tests/training/test_quickstart.py::test_a_quickstart_replaces_only_what_a_quickstart_wrote"
        ],
        "a user's folder named model is replaced",
    ),
    # ---- cir_cot/data/chain_decisions.py
    (
        "cir_cot/data/chain_decisions.py",
        "os.ftruncate(file, end)\n    # A full disk",
        "os.ftruncate(file, size)\n    # A full disk",
        [
            "tests/data/test_chain_decisions.py::test_a_line_that_a_killed_process_left_incomplete_is_cut_off"
        ],
        "an incomplete line stays in front of the next decision",
    ),
    (
        "cir_cot/data/chain_decisions.py",
        "if (cot is not None) != (verdict in KEPT):",
        "if False:",
        ["tests/data/test_chain_decisions.py::test_bad_decisions_are_named"],
        "a rejected row may keep a chain",
    ),
    (
        "cir_cot/data/chain_files.py",
        "if index in lines and not line.decided:",
        "if index in lines:",
        [
            "tests/data/test_chain_decisions.py::test_the_last_decision_of_a_row_wins_and_rejected_rows_have_no_chain"
        ],
        "a reviewer cannot decide again",
    ),
    # ---- reranking
    (
        "cir_cot/heads/rerank.py",
        "shared = copy.deepcopy(cache)",
        "shared = cache",
        ["tests/heads/test_rerank.py::test_the_shared_query_equals_complete_rows"],
        "a batch of candidates reads the one before it",
    ),
    (
        "cir_cot/heads/rerank.py",
        "self.backbone.positions(after) + self.backbone.next_positions(before)",
        "self.backbone.positions(after)",
        ["tests/heads/test_rerank.py::test_the_shared_query_equals_complete_rows"],
        "candidates stand where the query stands",
    ),
    (
        "cir_cot/heads/rerank.py",
        "self.answers[int(name not in row.record.targets)]",
        "self.answers[int(bool(row.negatives))]",
        ["tests/heads/test_rerank.py::test_a_target_that_fills_up_for_a_negative_is_answered_yes"],
        "a target in a negative's place is answered no",
    ),
    (
        "cir_cot/evaluation/look_again.py",
        "front = sorted(ranking[:first], key=lambda name: -score[name])",
        "front = sorted(sorted(ranking[:first]), key=lambda name: -score[name])",
        ["tests/evaluation/test_look_again.py::test_ties_keep_the_order_of_the_first_stage"],
        "ties follow the pictures' names",
    ),
    (
        "cir_cot/evaluation/look_again.py",
        "if not math.isfinite(score):",
        "if False:",
        [
            "tests/evaluation/test_look_again.py::test_a_score_that_is_not_finite_names_query_and_picture"
        ],
        "NaN orders pictures at random",
    ),
    (
        "cir_cot/prompts.py",
        'before, after = JUDGE.split("{chain}")\n    written = "" if chain is None else cot_to_text(chain) + "\\n"\n    return before.replace("{text}", text) + written + after',
        'written = "" if chain is None else cot_to_text(chain) + "\\n"\n    return JUDGE.replace("{text}", text).replace("{chain}", written)',
        [
            "tests/heads/test_rerank.py::test_a_prompt_shows_text_and_chain_and_nothing_is_replaced_twice"
        ],
        "a user's text that names the placeholder is replaced",
    ),
    (
        "cir_cot/training/negatives.py",
        "known = {*record.targets} if keep_reference else {record.reference, *record.targets}",
        "known = {record.reference, *record.targets}",
        [
            "tests/training/test_rerank_recipe.py::test_own_negatives_are_near_and_far_and_never_a_target"
        ],
        "the reference is no negative of its own",
    ),
    (
        "cir_cot/heads/rerank.py",
        "wanted = (labels[:, 1:][at] == self.answers[1]).long()",
        "wanted = (labels[:, 1:][at] == self.answers[0]).long()",
        ["tests/heads/test_rerank.py::test_a_few_steps_fit_a_batch"],
        "yes is learned as no",
    ),
    (
        "cir_cot/search/search.py",
        "first = max(k, self.again.first)",
        "first = k",
        ["tests/search/test_second_look.py::test_a_hit_beyond_k_can_become_the_first"],
        "the reranker sees no more pictures than are asked for",
    ),
    (
        "cir_cot/search/second_look.py",
        "if not math.isfinite(score):",
        "if False:",
        ["tests/search/test_second_look.py::test_a_score_that_is_not_finite_names_the_picture"],
        "NaN orders hits at random",
    ),
]
