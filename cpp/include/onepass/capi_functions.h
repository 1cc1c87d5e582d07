/* What capi.h declares, without directives other than numbers: for parsers that have no
 * preprocessor, such as cffi's. Compilers include capi.h.
 *
 * In every struct a member that is 0 is absent or has its default, so that what is added later is 0
 * in programs that do not know it. Structs and the table grow at the end alone. The names of rules
 * and settings are stable. Their numbers are not: look them up when the program runs. Unless said
 * otherwise a function returns ONEPASS_OK or another code. With another code it has changed no
 * array, and nothing but a result that it was given.
 */

/* The ABI that this header describes. From 1 on, a library with the same number has at least what
 * stands here. 0 promises nothing: compile for each release. */
#define ONEPASS_ABI 0

/* Numbers enough for any rule's settings, for its scalars, or for what it remembers. */
#define ONEPASS_MOST_NUMBERS 64

/* Codes: onepass_message has a sentence for each. */
#define ONEPASS_OK 0
#define ONEPASS_NO_RULE 1       /* no rule with this number */
#define ONEPASS_NO_OPTION 2     /* the rule has no such option */
#define ONEPASS_NO_ARRAY 3      /* an array is NULL that must be there, or there that must not be */
#define ONEPASS_MISALIGNED 4    /* an array does not begin at a multiple of its items' size */
#define ONEPASS_BAD_FORMAT 5    /* a format that does not exist, or not for this array */
#define ONEPASS_OVERLAP 6       /* two arrays share memory, and one of them is written */
#define ONEPASS_BAD_SIZE 7      /* sizes that do not go together, or are too large */
#define ONEPASS_BAD_ROW 8       /* the number of a row that the tensor has not */
#define ONEPASS_NO_ROWS 9       /* rows cannot move alone with this rule, or with these settings */
#define ONEPASS_BAD_NUMBER 10   /* of a step, of threads, of what to do: not one that there is */
#define ONEPASS_NO_DIRECTION 11 /* the rule steps along directions, which the caller makes */
#define ONEPASS_NONFINITE 12    /* a gradient has an infinity or a NaN, and the call says to fail */
#define ONEPASS_NO_MEMORY 13
#define ONEPASS_NO_ISA 14     /* ONEPASS_ISA of the environment is none that runs here */
#define ONEPASS_NO_SETTING 15 /* the rule has no setting of this name */
#define ONEPASS_DISAGREE 16   /* groups that must share their rule or settings do not */

/* Formats of arrays. For a parameter, 0 is F32. For any other array 0 is the format in which the
 * rule computes: F64 where the parameter is F64, else F32. A gradient may have any format but
 * Q8, whatever the parameter's: it is widened, or rounded to the nearest float, where it is read.
 * One of 16 bits needs its grad_format, even beside a parameter of 16 bits. */
#define ONEPASS_F32 1
#define ONEPASS_F64 2
#define ONEPASS_BF16 3
#define ONEPASS_F16 4
#define ONEPASS_Q8 5 /* state in 8 bits: codes of whole blocks of 256, behind them their scales */

/* What onepass_count, onepass_name and onepass_index are asked for. */
#define ONEPASS_STATES 0
#define ONEPASS_SETTINGS 1
#define ONEPASS_OPTIONS 2
#define ONEPASS_MEMORY 3
#define ONEPASS_SCALARS 4 /* how many there are; they have no names */

/* What a rule is like: bits that onepass_traits returns. */
#define ONEPASS_TRAIT_MEASURES 1 /* it reads whole arrays before it steps */
#define ONEPASS_TRAIT_DIRECTED 2 /* it steps along directions that the caller makes of matrices */
#define ONEPASS_TRAIT_SHAPED 4   /* its state has shapes of its own beside two or more axes */
#define ONEPASS_TRAIT_TOGETHER 8 /* what it measures is summed over all tensors; one memory */
#define ONEPASS_TRAIT_ROWS 16    /* rows of a table may move alone */

/* What a call does with a gradient that is not finite. */
#define ONEPASS_PROPAGATE 0
#define ONEPASS_SKIP 1
#define ONEPASS_FAIL 2

/* Why a step was skipped, as a result says. */
#define ONEPASS_SKIPPED_NONFINITE 1 /* a gradient is not finite */
#define ONEPASS_SKIPPED_NORM 2      /* the gradients' norm is larger than skip_norm */

/* Arrays of a tensor, as a result names them; its k-th state is ONEPASS_ARRAY_STATE + k. */
#define ONEPASS_ARRAY_NONE 0
#define ONEPASS_ARRAY_PARAM 1
#define ONEPASS_ARRAY_GRAD 2
#define ONEPASS_ARRAY_AVERAGE 3
#define ONEPASS_ARRAY_COPY 4
#define ONEPASS_ARRAY_SLOW 5
#define ONEPASS_ARRAY_ROWS 6
#define ONEPASS_ARRAY_MEMORY 7
#define ONEPASS_ARRAY_DIRECTION 8
#define ONEPASS_ARRAY_SHAPE 9
#define ONEPASS_ARRAY_STATE 16

int32_t onepass_abi(void);
const char* onepass_version(void);
const char* onepass_isa(void); /* "" where ONEPASS_ISA names none that runs here */
const char* onepass_message(int32_t code);

/* Threads of a call that is told 0; a number below 1 changes nothing. */
int32_t onepass_threads(void);
void onepass_set_threads(int32_t threads);

/* The rules. For a rule, a name or an index that does not exist, functions that return a rule or an
 * index return -1, those that return a string NULL, and all others 0. AdamW is the rule adam with
 * the setting decoupled_weight_decay at 1. */
int32_t onepass_rules(void);
const char* onepass_rule_name(int32_t rule);
int32_t onepass_rule(const char* name);
int32_t onepass_count(int32_t rule, int32_t what);
const char* onepass_name(int32_t rule, int32_t what, int32_t i);
int32_t onepass_index(int32_t rule, int32_t what, const char* name);
int32_t onepass_traits(int32_t rule, int32_t options);
/* Whether the state is an array with these options (bit k: option k) and a parameter of so many
 * axes. */
int32_t onepass_uses_state(int32_t rule, int32_t options, int32_t ndim, int32_t state);
/* How many elements it has then, of a parameter of this shape; 0 where they cannot be counted. */
size_t onepass_state_size(int32_t rule, int32_t options, int32_t ndim, const int64_t* shape,
                          int32_t state);
/* The setting that the state starts from; -1: it starts from zeros. */
int32_t onepass_state_start(int32_t rule, int32_t state);
/* Both fill an array of onepass_count numbers: every setting as it is if nobody changes it (NaN:
 * none), and what a rule remembers as it begins. */
int32_t onepass_defaults(int32_t rule, double* settings);
int32_t onepass_memory_start(int32_t rule, double* memory);
/* Changes one of the settings, by its name. */
int32_t onepass_set(int32_t rule, double* settings, const char* name, double value);
/* The bytes of n elements. */
size_t onepass_bytes(int32_t format, size_t n);

/* The numbers of a step (from 1), in double and to the bit as the classes of Python have them:
 * onepass_count(rule, ONEPASS_SCALARS) of them. settings: NULL, or as onepass_defaults fills it;
 * they are those of Python's classes, whose ranges nobody checks here. memory: what the rule
 * remembers before the step, onepass_count(rule, ONEPASS_MEMORY) numbers; NULL where it remembers
 * nothing. */
int32_t onepass_scalars(int32_t rule, int64_t step, const double* settings, const double* memory,
                        double* scalars);

/* A step of one array of n elements, which is taken for a vector. After the first call in a process
 * it allocates nothing. It takes numbers and pointers alone, so it may stand in a loop that holds
 * no lock. format: of all arrays, ONEPASS_F32 or ONEPASS_F64. memory: as above; it becomes what the
 * rule remembers after the step. States that the rule does not use with these options are ignored,
 * and so are the settings of averages, of Lookahead and of clipping by norm, which onepass_step
 * has. Arrays must not overlap, which is not checked. */
int32_t onepass_update(int32_t rule, int32_t options, int32_t format, size_t n, void* param,
                       const void* grad, void* state0, void* state1, void* state2, void* state3,
                       const double* scalars, double* memory, int32_t threads);
/* The same of n_index rows of a table of n_rows rows of width elements; grad has a row for each of
 * them. Each row may stand in index once: what stands twice would be stepped twice, by two
 * threads at the same time perhaps (onepass_step adds up such gradients first). */
int32_t onepass_update_rows(int32_t rule, int32_t options, int32_t format, size_t n_rows,
                            size_t width, const int64_t* index, size_t n_index, void* param,
                            const void* grad, void* state0, void* state1, void* state2,
                            void* state3, const double* scalars, double* memory, int32_t threads);

/* Tensors that share their settings. All groups of a call share their rule. */
typedef struct onepass_group {
  int32_t rule;
  int32_t options;        /* bit k: option k */
  const double* settings; /* as onepass_defaults fills them; NULL: those. Their ranges are not
                           * checked, but for average_every and swa_start of a group that keeps
                           * an average: whole numbers from 1 on, or ONEPASS_BAD_NUMBER */
} onepass_group;

/* If the rule, its options or the settings do not use state[k], average or slow, it must be NULL,
 * or the call fails with ONEPASS_NO_ARRAY: so you notice an option that you forgot. Other members
 * that are not used are ignored. All arrays lie in one piece, in the order of param. */
typedef struct onepass_tensor {
  size_t size;
  void* param;
  void* grad; /* of it, or of the rows; written where the call zeroes it. NULL: left alone */
  void* state[4];
  double* memory;       /* what the rule remembers; of ONEPASS_TRAIT_TOGETHER, the first tensor's */
  void* average;        /* of the weights, where the settings ask for one; in double, or with
                         * the setting average_dtype at 1 in format 0 */
  void* slow;           /* Lookahead's weights, where the settings ask for them; in format 0 */
  void* copy;           /* of a float32 parameter, in 16 bits; the step writes it */
  void* direction;      /* ONEPASS_TRAIT_DIRECTED: what the step goes along; in format 0 */
  const int64_t* shape; /* of param; for ONEPASS_TRAIT_DIRECTED and ONEPASS_TRAIT_SHAPED */
  const int64_t* rows;  /* rows of a table that step alone; also twice, then gradients add up */
  size_t n_rows;
  size_t width;         /* elements of a row */
  int64_t steps;        /* completed before this one */
  int64_t average_from; /* how many of them were before its average began */
  int32_t group;
  int32_t ndim;
  int32_t f_order; /* not 0: the first axis is the one that moves fastest */
  int32_t format;  /* of param */
  int32_t grad_format;
  int32_t state_format; /* of the state that may be kept in fewer bits: BF16, Q8 */
  int32_t copy_format;  /* BF16, F16 */
  int32_t is_master;    /* not 0: param takes over what others have changed in copy */
  int32_t nearest;      /* not 0: 16-bit weights are rounded to nearest, and not at random */
  int32_t reserved;     /* 0 */
} onepass_tensor;

typedef struct onepass_call {
  size_t struct_size, group_size, tensor_size; /* onepass_new_call fills these in */
  double grad_scale; /* the loss scale, which gradients are divided by: positive; 0: 1 */
  double max_norm;   /* gradients are clipped to it together; infinite: measured alone; 0: none */
  int64_t seed;      /* of random rounding */
  int32_t threads;   /* 0: onepass_threads() */
  int32_t nonfinite;
  int32_t zero_grad; /* not 0: gradients are zeroed by the way */
  int32_t unchecked; /* not 0: arrays are known not to overlap */
  /* NULL, or whose threads take the step: it calls work(data) on up to so many of its threads, the
   * caller among them, and returns when all calls have. OpenMP's GOMP_parallel is such a function,
   * for programs whose own loops have just run on OpenMP's threads, which then still spin. */
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  /* A step is skipped where the norm of all gradients, unscaled and not clipped, is larger than
   * this, or not finite (with ONEPASS_FAIL that is an error): positive and finite; 0: none. */
  double skip_norm;
} onepass_call;

typedef struct onepass_result {
  size_t struct_size; /* onepass_new_result fills it in */
  double norm;        /* of all gradients, unscaled; NaN where it was not asked for */
  double d;           /* of a rule that finds its rate; else NaN */
  int64_t tensor;     /* with an error: which, from 0; else -1 */
  int64_t other_tensor;
  int32_t array; /* with an error: which of its arrays */
  int32_t other_array;
  int32_t clipped;
  int32_t skipped; /* not 0: why */
} onepass_result;

/* A step over many tensors, with all stages. Everything is checked and allocated before the first
 * write. result: NULL, or where to say what happened. The caller counts the steps: one that was
 * skipped has changed nothing but the zeroed gradients, and does not count. */
int32_t onepass_step(const onepass_group* groups, size_t n_groups, const onepass_tensor* tensors,
                     size_t n_tensors, const onepass_call* call, onepass_result* result);
/* The first half of a step of rules that are ONEPASS_TRAIT_DIRECTED. It writes to each tensor's
 * `direction` the matrix that its direction is to be made of, and the Euclidean norm of that to
 * `norms`, one number a tensor: 0 for tensors that have none, and for all where the step would be
 * skipped. The caller then makes the directions in their place, and calls onepass_step with the
 * same arguments. */
int32_t onepass_direct(const onepass_group* groups, size_t n_groups, const onepass_tensor* tensors,
                       size_t n_tensors, const onepass_call* call, double* norms,
                       onepass_result* result);

/* Batch normalisation of x, in C order and of shape (outer, channels, inner). */
typedef struct onepass_batch_norm {
  size_t struct_size; /* onepass_new_batch_norm fills it in */
  size_t outer, channels, inner;
  const void* x;
  const void* residual; /* NULL: none; added before the ReLU */
  const void* dy;       /* backward */
  void* out;            /* y, or backward dx; it may be x, dy or residual itself, but for train */
  void* dresidual;      /* backward, where there is a residual */
  const void *weight, *bias;         /* one a channel; NULL: ones, zeros */
  const void *mean, *var;            /* infer, and backward through given statistics */
  double *batch_mean, *batch_invstd; /* train writes them, backward reads them */
  void *running_mean, *running_var;  /* train moves them; NULL: none */
  int64_t* batches;                  /* with running statistics, train adds 1; NULL: not counted */
  void *weight_grad, *bias_grad;     /* backward writes them */
  double eps;                        /* 0: 1e-5 */
  double momentum;                   /* 0: 0.1; NaN: all batches count alike (needs batches) */
  int32_t format;                    /* of x and whatever is as large: F32, F64, BF16, F16 */
  int32_t channel_format;     /* of what has one number a channel: F32, F64; 0: as format, or F32 */
  int32_t relu;               /* not 0 */
  int32_t biased_running_var; /* not 0: without the factor n / (n - 1) */
  int32_t skip_nonfinite; /* not 0: a batch that is not finite leaves running statistics alone */
  int32_t threads;        /* 0: onepass_threads() */
  int32_t unchecked;      /* not 0: arrays are known not to overlap */
  int32_t reserved;       /* 0 */
} onepass_batch_norm;

int32_t onepass_batch_norm_train(const onepass_batch_norm* bn);
int32_t onepass_batch_norm_infer(const onepass_batch_norm* bn);
/* With var: through these statistics, as they stand; without: through the batch's. */
int32_t onepass_batch_norm_backward(const onepass_batch_norm* bn);

/* All of these in one table. */
typedef struct onepass_api {
  int32_t abi;
  uint32_t size; /* of the table */
  const char* version;
  const char* (*isa)(void);
  const char* (*message)(int32_t code);
  int32_t (*threads)(void);
  void (*set_threads)(int32_t threads);
  int32_t (*rules)(void);
  const char* (*rule_name)(int32_t rule);
  int32_t (*rule)(const char* name);
  int32_t (*count)(int32_t rule, int32_t what);
  const char* (*name)(int32_t rule, int32_t what, int32_t i);
  int32_t (*index)(int32_t rule, int32_t what, const char* name);
  int32_t (*traits)(int32_t rule, int32_t options);
  int32_t (*uses_state)(int32_t rule, int32_t options, int32_t ndim, int32_t state);
  size_t (*state_size)(int32_t rule, int32_t options, int32_t ndim, const int64_t* shape,
                       int32_t state);
  int32_t (*state_start)(int32_t rule, int32_t state);
  int32_t (*defaults)(int32_t rule, double* settings);
  int32_t (*memory_start)(int32_t rule, double* memory);
  size_t (*bytes)(int32_t format, size_t n);
  int32_t (*scalars)(int32_t rule, int64_t step, const double* settings, const double* memory,
                     double* scalars);
  int32_t (*update)(int32_t rule, int32_t options, int32_t format, size_t n, void* param,
                    const void* grad, void* state0, void* state1, void* state2, void* state3,
                    const double* scalars, double* memory, int32_t threads);
  int32_t (*update_rows)(int32_t rule, int32_t options, int32_t format, size_t n_rows, size_t width,
                         const int64_t* index, size_t n_index, void* param, const void* grad,
                         void* state0, void* state1, void* state2, void* state3,
                         const double* scalars, double* memory, int32_t threads);
  int32_t (*step)(const onepass_group* groups, size_t n_groups, const onepass_tensor* tensors,
                  size_t n_tensors, const onepass_call* call, onepass_result* result);
  int32_t (*direct)(const onepass_group* groups, size_t n_groups, const onepass_tensor* tensors,
                    size_t n_tensors, const onepass_call* call, double* norms,
                    onepass_result* result);
  int32_t (*batch_norm_train)(const onepass_batch_norm* bn);
  int32_t (*batch_norm_infer)(const onepass_batch_norm* bn);
  int32_t (*batch_norm_backward)(const onepass_batch_norm* bn);
  int32_t (*set)(int32_t rule, double* settings, const char* name, double value);
} onepass_api;
