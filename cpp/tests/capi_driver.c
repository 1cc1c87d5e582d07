/* The C interface from C: every rule alone and among others, eight callers at once, a forked child,
 * and bad input. Arrays lie in heap blocks of their exact size. It is compiled with today's header
 * and with the frozen one of the first version. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "onepass/capi.h"

enum { STATES = 4 };

static int checks = 0, failures = 0;

static void check(int holds, const char* what, const char* of) {
  ++checks;
  if (holds) return;
  ++failures;
  printf("FAILED: %s: %s\n", of, what);
}

/* A parameter with what belongs to it, all of it for one rule. */
typedef struct one {
  int32_t rule, options;
  size_t n;
  float *param, *grad, *state[STATES];
  double memory[ONEPASS_MOST_NUMBERS], settings[ONEPASS_MOST_NUMBERS];
} one;

static float* numbers(size_t n, unsigned seed) {
  float* made = (float*)malloc(n * sizeof(float) + (n == 0));
  size_t i;
  for (i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    made[i] = (float)(seed >> 8) / (float)(1 << 23) - 1.0f;
  }
  return made;
}

static one make(int32_t rule, int32_t options, size_t n) {
  one made;
  int32_t k;
  memset(&made, 0, sizeof made);
  made.rule = rule;
  made.options = options;
  made.n = n;
  made.param = numbers(n, 1);
  made.grad = numbers(n, 2);
  onepass_defaults(rule, made.settings);
  onepass_memory_start(rule, made.memory);
  for (k = 0; k < onepass_count(rule, ONEPASS_STATES); ++k) {
    const int32_t place = onepass_state_start(rule, k);
    size_t i;
    if (!onepass_uses_state(rule, options, 1, k)) continue;
    made.state[k] = numbers(n, 3);
    for (i = 0; i < n; ++i) made.state[k][i] = place < 0 ? 0.0f : (float)made.settings[place];
  }
  return made;
}

static void drop(one* it) {
  int k;
  free(it->param);
  free(it->grad);
  for (k = 0; k < STATES; ++k) free(it->state[k]);
}

static int same(const one* a, const one* b) {
  int k;
  int equal = memcmp(a->param, b->param, a->n * sizeof(float)) == 0 &&
              memcmp(a->memory, b->memory, sizeof a->memory) == 0;
  for (k = 0; k < STATES; ++k) {
    if (a->state[k]) equal = equal && memcmp(a->state[k], b->state[k], a->n * sizeof(float)) == 0;
  }
  return equal;
}

static int32_t update(one* it, int64_t step, int32_t threads) {
  double scalars[ONEPASS_MOST_NUMBERS];
  const int32_t code = onepass_scalars(it->rule, step, it->settings, it->memory, scalars);
  if (code != ONEPASS_OK) return code;
  return onepass_update(it->rule, it->options, ONEPASS_F32, it->n, it->param, it->grad,
                        it->state[0], it->state[1], it->state[2], it->state[3], scalars, it->memory,
                        threads);
}

static int32_t step_together(one* them, size_t n, int64_t step, int32_t threads,
                             onepass_result* result) {
  onepass_call call = onepass_new_call();
  onepass_group group;
  onepass_tensor* tensors = (onepass_tensor*)calloc(n, sizeof *tensors);
  int64_t* sizes = (int64_t*)calloc(n, sizeof *sizes);
  size_t i;
  int32_t code;
  call.threads = threads;
  group.rule = them->rule;
  group.options = them->options;
  group.settings = them->settings;
  for (i = 0; i < n; ++i) {
    int k;
    sizes[i] = (int64_t)them[i].n;
    tensors[i].size = them[i].n;
    tensors[i].param = them[i].param;
    tensors[i].grad = them[i].grad;
    tensors[i].memory = them[i].memory;
    tensors[i].shape = &sizes[i];
    tensors[i].ndim = 1;
    tensors[i].steps = step - 1;
    for (k = 0; k < STATES; ++k) tensors[i].state[k] = them[i].state[k];
  }
  code = onepass_step(&group, 1, tensors, n, &call, result);
  free(tensors);
  free(sizes);
  return code;
}

static void check_rule(int32_t rule, int32_t options) {
  static const size_t sizes[] = {0, 1, 7, 1000, 40001};
  const char* name = onepass_rule_name(rule);
  size_t i;
  int64_t step;
  if (onepass_traits(rule, options) & ONEPASS_TRAIT_DIRECTED) {
    one it = make(rule, options, 7);
    check(update(&it, 1, 1) == ONEPASS_NO_DIRECTION, "a direction is asked for", name);
    drop(&it);
    return;
  }
  for (i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    one alone = make(rule, options, sizes[i]), together = make(rule, options, sizes[i]);
    for (step = 1; step <= 3; ++step) {
      onepass_result result = onepass_new_result();
      check(update(&alone, step, 1) == ONEPASS_OK, "an update", name);
      check(step_together(&together, 1, step, 3, &result) == ONEPASS_OK, "a step", name);
      check(result.tensor == -1 && !result.skipped, "its result", name);
    }
    check(same(&alone, &together), "an update is a step of one tensor", name);
    drop(&alone);
    drop(&together);
  }
}

static void check_rows(int32_t rule, int32_t options) {
  enum { rows = 50, width = 3, n_index = 20 };
  int64_t index[n_index];
  double scalars[ONEPASS_MOST_NUMBERS];
  one table = make(rule, options, (size_t)rows * width),
      part = make(rule, options, n_index * width);
  int i;
  int equal = 1;
  for (i = 0; i < n_index; ++i) {
    index[i] = (i * 7 + 3) % rows;
    memcpy(part.param + i * width, table.param + index[i] * width, width * sizeof(float));
  }
  memcpy(part.grad, table.grad, part.n * sizeof(float));
  onepass_scalars(rule, 1, table.settings, table.memory, scalars);
  check(onepass_update_rows(rule, options, ONEPASS_F32, rows, width, index, n_index, table.param,
                            table.grad, table.state[0], table.state[1], table.state[2],
                            table.state[3], scalars, table.memory, 2) == ONEPASS_OK,
        "rows", onepass_rule_name(rule));
  check(update(&part, 1, 1) == ONEPASS_OK, "these rows alone", onepass_rule_name(rule));
  for (i = 0; i < n_index; ++i) {
    equal = equal && memcmp(part.param + i * width, table.param + index[i] * width,
                            width * sizeof(float)) == 0;
  }
  check(equal, "rows are the same alone", onepass_rule_name(rule));
  drop(&table);
  drop(&part);
}

enum { callers = 8, steps = 20 };
static const size_t size_of_each = 70000;

static void* call_often(void* of) {
  one* it = (one*)of;
  int64_t step;
  for (step = 1; step <= steps; ++step) {
    if (update(it, step, 4) != ONEPASS_OK) return of;
  }
  return NULL;
}

static void check_callers(int32_t rule) {
  pthread_t threads[callers];
  one made[callers], expected = make(rule, 0, size_of_each);
  int i;
  check(call_often(&expected) == NULL, "steps of one caller", onepass_rule_name(rule));
  for (i = 0; i < callers; ++i) made[i] = make(rule, 0, size_of_each);
  for (i = 0; i < callers; ++i) pthread_create(&threads[i], NULL, call_often, &made[i]);
  for (i = 0; i < callers; ++i) {
    void* failed = NULL;
    pthread_join(threads[i], &failed);
    check(failed == NULL && same(&made[i], &expected), "one of eight callers",
          onepass_rule_name(rule));
    drop(&made[i]);
  }
  drop(&expected);
}

static void check_fork(int32_t rule) {
  one expected = make(rule, 0, size_of_each);
  int status = 1;
  pid_t child;
  call_often(&expected);
  child = fork();
  if (child == 0) {
    one made = make(rule, 0, size_of_each);
    _exit(call_often(&made) == NULL && same(&made, &expected) ? 0 : 1);
  }
  check(child > 0 && waitpid(child, &status, 0) == child && status == 0, "a forked child",
        onepass_rule_name(rule));
  drop(&expected);
}

static void check_bad_input(int32_t rule) {
  one it = make(rule, 0, 100), before = make(rule, 0, 100);
  float* const param = it.param;
  onepass_result result = onepass_new_result();
  it.param = NULL;
  check(update(&it, 1, 1) == ONEPASS_NO_ARRAY, "no parameter", "bad input");
  check(step_together(&it, 1, 1, 1, &result) == ONEPASS_NO_ARRAY, "no parameter", "bad input");
  check(result.tensor == 0 && result.array == ONEPASS_ARRAY_PARAM, "which array", "bad input");
  it.param = (float*)(void*)((char*)(void*)param + 1);
  check(update(&it, 1, 1) == ONEPASS_MISALIGNED, "misaligned", "bad input");
  it.param = it.state[0];
  check(step_together(&it, 1, 1, 1, &result) == ONEPASS_OVERLAP, "overlap", "bad input");
  check(result.array != result.other_array, "which two arrays", "bad input");
  it.param = param;
  check(update(&it, 0, 1) == ONEPASS_BAD_NUMBER, "step 0", "bad input");
  check(update(&it, 1, -1) == ONEPASS_BAD_NUMBER, "threads -1", "bad input");
  it.options = 1 << 20;
  check(update(&it, 1, 1) == ONEPASS_NO_OPTION, "an option", "bad input");
  it.options = 0;
  check(same(&it, &before), "nothing has changed", "bad input");
  check(strcmp(onepass_message(-5), onepass_message(ONEPASS_OK)) != 0, "messages", "bad input");
  drop(&it);
  drop(&before);
}

int main(void) {
  const int32_t adam = onepass_rule("adam");
  int32_t rule;
  check(onepass_abi() == ONEPASS_ABI && onepass_rules() > 0 && adam >= 0, "the library", "onepass");
  for (rule = 0; rule < onepass_rules(); ++rule) {
    int32_t options;
    const int32_t end = 1 << onepass_count(rule, ONEPASS_OPTIONS);
    for (options = 0; options < end; ++options) {
      check_rule(rule, options);
      if (onepass_traits(rule, options) & ONEPASS_TRAIT_ROWS) check_rows(rule, options);
    }
  }
  check_callers(adam);
  check_fork(adam);
  check_bad_input(adam);
  printf("onepass %s on %s: %d checks, %d failures\n", onepass_version(), onepass_isa(), checks,
         failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
