# tools/trees.sh: sourced by ./check and ./check-faults: the build trees, and the sum over their tests. After tools/setup.sh.
passed=0
failed=0

# test_tree FOLDER MESON_TEST_ARGUMENTS…: builds what the chosen tests need, runs them, adds to the sums, prints failing tests' output
test_tree()
{
    local tree=$root/$1 name=$1 counts status=0; shift
    local log=$tree/meson-logs/testlog.json
    rm -f "$log"
    echo "== $name"
    meson test -C "$tree" --print-errorlogs "$@" > "$root/build-logs/$name-test.log" 2>&1 || status=$?
    if ! counts=$(python3 "$root/tools/tally.py" "$log"); then
        # nothing ran: the build failed
        grep -m 20 -E 'error:|FAILED:|undefined reference|No space left' "$root/build-logs/$name-test.log" ||
            tail -n 20 "$root/build-logs/$name-test.log"
        echo "$name: not built; the whole text is in build-logs/$name-test.log"
        failed=$((failed + 1))
        return 0
    fi
    echo "$counts" | sed '$d'
    counts=$(echo "$counts" | tail -n 1)
    passed=$((passed + ${counts% *}))
    failed=$((failed + ${counts#* }))
    echo "$name: ${counts% *} passed, ${counts#* } failed"
    if [ "$status" -ne 0 ] && [ "${counts#* }" = 0 ]; then
        echo "$name: meson test ended with status $status; see build-logs/$name-test.log"
        failed=$((failed + 1))
    fi
}

# the last line of ./check
say_sum()
{
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}

asan_tree()
{
    setup_tree build-asan --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false
}

tsan_tree()
{
    setup_tree build-tsan --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false
}
